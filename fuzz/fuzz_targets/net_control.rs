#![no_main]
ossature_fuzz::program!("net_control");
