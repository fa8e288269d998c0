#![no_main]
ossature_fuzz::program!("remote_server");
