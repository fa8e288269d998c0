#![no_main]
ossature_fuzz::program!("qcow2");
