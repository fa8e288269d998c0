#![no_main]
ossature_fuzz::program!("device_state");
