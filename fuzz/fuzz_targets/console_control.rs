#![no_main]
ossature_fuzz::program!("console_control");
