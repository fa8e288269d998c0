#![no_main]
ossature_fuzz::program!("working_set");
