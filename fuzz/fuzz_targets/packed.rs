#![no_main]
ossature_fuzz::program!("packed");
