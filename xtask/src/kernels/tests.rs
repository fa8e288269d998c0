use super::*;

#[test]
fn the_metapackage_names_the_release() {
    let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
    assert_eq!(parse_depends(text, Arch::X86_64, Flavour::Cloud), Some("6.1.0-56-cloud-amd64"));
    assert_eq!(parse_depends(text, Arch::X86_64, Flavour::Generic), None);
    assert_eq!(parse_depends("linux-image-amd64\n", Arch::X86_64, Flavour::Generic), None);
}

#[test]
fn flavours_are_told_apart_and_ordered_by_number() {
    assert_eq!(abi("6.1.0-56-amd64", Arch::X86_64, Flavour::Generic), Some(vec![6, 1, 0, 56]));
    assert_eq!(abi("6.1.0-56-cloud-amd64", Arch::X86_64, Flavour::Generic), None);
    assert_eq!(abi("6.1.0-56-cloud-amd64", Arch::X86_64, Flavour::Cloud), Some(vec![6, 1, 0, 56]));
    assert!(
        abi("6.1.0-9-amd64", Arch::X86_64, Flavour::Generic)
            < abi("6.1.0-10-amd64", Arch::X86_64, Flavour::Generic)
    );
}

#[test]
fn architectures_are_told_apart() {
    let text = "linux-image-cloud-arm64\n  Depends: linux-image-6.1.0-56-cloud-arm64\n";
    assert_eq!(parse_depends(text, Arch::Aarch64, Flavour::Cloud), Some("6.1.0-56-cloud-arm64"));
    assert_eq!(parse_depends(text, Arch::X86_64, Flavour::Cloud), None);
    assert_eq!(abi("6.1.0-56-arm64", Arch::X86_64, Flavour::Generic), None);
}

#[test]
fn module_lines_keep_their_parameters() {
    let module =
        |file: &str, parameters: &str| Some(Module { file: file.into(), parameters: parameters.into() });
    assert_eq!(parse_insmod("insmod /a/virtio.ko "), module("/a/virtio.ko", ""));
    assert_eq!(parse_insmod("insmod /a/virtio.ko"), module("/a/virtio.ko", ""));
    assert_eq!(parse_insmod("insmod /a/kvm.ko nested=1 x=2 "), module("/a/kvm.ko", "nested=1 x=2"));
    assert_eq!(parse_insmod("builtin ext4"), None);
}

#[test]
fn the_payload_is_found_and_a_short_file_is_refused() {
    let mut image = vec![0; 3 * 512 + 16];
    image[0x1f1] = 1;
    image[0x248..0x24c].copy_from_slice(&512_u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&16_u32.to_le_bytes());
    image[3 * 512..].fill(7);
    assert_eq!(payload(&image), Some(&[7; 16][..]));
    assert_eq!(payload(&image[..3 * 512 + 15]), None);
    assert_eq!(payload(&image[..0x100]), None);
}
