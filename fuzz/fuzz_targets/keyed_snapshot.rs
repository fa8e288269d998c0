#![no_main]
ossature_fuzz::program!("keyed_snapshot");
