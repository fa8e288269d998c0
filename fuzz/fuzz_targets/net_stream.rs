#![no_main]
ossature_fuzz::program!("net_stream");
