use super::*;

fn message(n: u32) -> MsiMessage {
    MsiMessage { address: 0x1_fee0_0000 + u64::from(n), data: n }
}

#[test]
fn messages_get_the_lines_after_the_wired_ones() {
    let mut routes = IrqRoutes::default();
    assert_eq!([routes.add(message(1)).unwrap(), routes.add(message(2)).unwrap()], [24, 25]);
    assert_eq!(routes.set(24, message(3)).unwrap(), message(1));
    let messages: Vec<_> = routes.entries().into_iter().filter(|e| e.type_ == KVM_IRQ_ROUTING_MSI).collect();
    assert_eq!(messages.iter().map(|e| e.gsi).collect::<Vec<_>>(), [24, 25]);
}

#[test]
fn only_messages_can_be_changed() {
    let mut routes = IrqRoutes::default();
    for gsi in [0, 23, 24, u32::MAX] {
        assert!(matches!(routes.set(gsi, message(0)), Err(VmError::NoSuchRoute { gsi: g }) if g == gsi));
    }
}

#[test]
fn the_wired_lines_are_kvms_own() {
    let entries = IrqRoutes::default().entries();
    assert!(entries.iter().all(|e| e.type_ == KVM_IRQ_ROUTING_IRQCHIP));
    for gsi in 0..24 {
        let chips = entries.iter().filter(|e| e.gsi == gsi).count();
        assert_eq!(chips, if gsi < 16 { 2 } else { 1 }, "line {gsi}");
    }
}

#[test]
fn a_full_table_is_an_error_that_says_so() {
    let mut routes = IrqRoutes::default();
    for n in 0..MAX_MESSAGES {
        routes.add(message(n)).unwrap();
    }
    assert!(matches!(routes.add(message(0)), Err(VmError::NoFreeRoute { max: MAX_MESSAGES })));
    assert_eq!(routes.entries().len(), 4096);
}
