#![no_main]
ossature_fuzz::program!("pci_config");
