use ossature_bus::{DoorbellRequest, InterruptRequest, RangeRequest, Size, Trigger};

use super::*;

fn range(space: AddressSpace, size: u64, placement: Placement) -> RangeRequest {
    RangeRequest { space, size, align: size, placement }
}

fn interrupt(placement: Placement) -> InterruptRequest {
    InterruptRequest { placement, trigger: Trigger::Edge }
}

/// What a virtio-mmio transport asks for.
fn virtio() -> Requires {
    Requires {
        ranges: vec![range(AddressSpace::Mmio, 0x1000, Placement::Any)],
        interrupts: vec![interrupt(Placement::Any)],
        doorbells: vec![DoorbellRequest { range: 0, offset: 0x50, size: Size::B4, value: Some(0) }],
        pages: vec![0],
    }
}

fn com1() -> Requires {
    Requires {
        ranges: vec![range(AddressSpace::Pio, 8, Placement::Fixed(0x3f8))],
        interrupts: vec![interrupt(Placement::Fixed(4))],
        ..Requires::default()
    }
}

#[test]
fn each_device_gets_its_own_places_in_the_order_in_which_it_asked() {
    let both = Requires {
        ranges: vec![
            range(AddressSpace::Pio, 4, Placement::Any),
            range(AddressSpace::Mmio, 0x2000, Placement::Any),
            range(AddressSpace::Pio, 1, Placement::Fixed(0x80)),
        ],
        interrupts: vec![interrupt(Placement::Any), interrupt(Placement::Fixed(11))],
        ..Requires::default()
    };
    let places = plan(&["disk", "com1", "both"], &[virtio(), com1(), both]).unwrap();
    assert_eq!(places[0], Place { ranges: vec![0xd000_2000], interrupts: vec![6] });
    assert_eq!(places[1], Place { ranges: vec![0x3f8], interrupts: vec![4] });
    assert_eq!(places[2], Place { ranges: vec![0xc000, 0xd000_0000, 0x80], interrupts: vec![5, 11] });
}

#[test]
fn places_do_not_depend_on_the_order_of_the_devices() {
    let one = plan(&["a", "b", "com1"], &[virtio(), virtio(), com1()]).unwrap();
    let other = plan(&["com1", "b", "a"], &[com1(), virtio(), virtio()]).unwrap();
    assert_eq!(one[0], other[2]);
    assert_eq!(one[1], other[1]);
}

#[test]
fn everything_wrong_is_told_at_once() {
    let ram = Requires {
        ranges: vec![range(AddressSpace::Mmio, 0x1000, Placement::Fixed(0x1000))],
        ..Requires::default()
    };
    let apic = Requires {
        ranges: vec![range(AddressSpace::Mmio, 0x1000, Placement::Fixed(0xfec0_0000))],
        ..Requires::default()
    };
    let port = Requires {
        ranges: vec![range(AddressSpace::Pio, 2, Placement::Fixed(0x1_0000))],
        ..Requires::default()
    };
    let bell = Requires {
        doorbells: vec![DoorbellRequest { range: 0, offset: 0x1000, size: Size::B4, value: None }],
        pages: vec![1],
        ..virtio()
    };
    let ids = ["com1", "serial", "ram", "apic", "port", "bell"];
    let errors = plan(&ids, &[com1(), com1(), ram, apic, port, bell]).unwrap_err();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "device \"bell\" asks for a doorbell at 0x1000 of its range 0, which has no such place",
            "device \"bell\" asks for a register page for its range 1, which is not one page of memory",
            "memory addresses: apic requests 0xfec00000+0x1000, which is outside the space",
            "memory addresses: ram requests 0x1000+0x1000, which is outside the space",
            "ports: port requests 0x10000+0x2, which is outside the space",
            "ports: serial at 0x3f8+0x8 overlaps com1 at 0x3f8+0x8",
            "interrupts: serial at 0x4+0x1 overlaps com1 at 0x4+0x1",
        ]
    );
}

#[test]
fn running_out_of_interrupts_names_those_without_one() {
    let ids: Vec<String> = (0..18).map(|i| format!("disk{i:02}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let requires: Vec<Requires> = ids.iter().map(|_| virtio()).collect();
    assert!(plan(&ids[..17], &requires[..17]).is_ok());
    let errors = plan(&ids, &requires).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].to_string(), "interrupts: no room for disk17, which requests 0x1 aligned to 0x1");
}
