#![no_main]
ossature_fuzz::program!("state_file");
