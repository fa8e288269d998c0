#![no_main]
ossature_fuzz::program!("fw_cfg");
