#![no_main]
ossature_fuzz::program!("snapshot");
