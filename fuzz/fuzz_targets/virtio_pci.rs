#![no_main]
ossature_fuzz::program!("virtio_pci");
