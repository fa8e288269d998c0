use super::*;
use crate::arch::testing::controllers_of;

/// The first lines of messages.
const FIRST: [u32; 2] = [WIRED_LINES, WIRED_LINES + 1];

fn message(n: u32) -> MsiMessage {
    MsiMessage::new(0x1_fee0_0000 + u64::from(n), n)
}

#[test]
fn messages_get_the_lines_after_the_wired_ones() {
    let mut routes = IrqRoutes::default();
    assert_eq!([routes.add(message(1)).unwrap(), routes.add(message(2)).unwrap()], FIRST);
    assert_eq!(routes.set(FIRST[0], message(3)).unwrap(), message(1));
    let messages: Vec<_> = routes.entries().into_iter().filter(|e| e.type_ == KVM_IRQ_ROUTING_MSI).collect();
    assert_eq!(messages.iter().map(|e| e.gsi).collect::<Vec<_>>(), FIRST);
}

#[test]
fn a_freed_line_is_handed_out_again() {
    let mut routes = IrqRoutes::default();
    let first = routes.add(message(1)).unwrap();
    let second = routes.add(message(2)).unwrap();
    routes.remove(first);
    assert!(routes.set(first, message(3)).is_err());
    assert_eq!(routes.entries().iter().filter(|e| e.type_ == KVM_IRQ_ROUTING_MSI).count(), 1);
    assert_eq!([routes.add(message(4)).unwrap(), routes.add(message(5)).unwrap()], [first, second + 1]);
}

#[test]
fn only_messages_can_be_changed() {
    let mut routes = IrqRoutes::default();
    for gsi in [0, WIRED_LINES - 1, WIRED_LINES, u32::MAX] {
        assert!(matches!(routes.set(gsi, message(0)), Err(VmError::NoSuchRoute { gsi: g }) if g == gsi));
    }
}

#[test]
fn the_wired_lines_are_kvms_own() {
    let entries = IrqRoutes::default().entries();
    assert!(entries.iter().all(|e| e.type_ == KVM_IRQ_ROUTING_IRQCHIP));
    for gsi in 0..WIRED_LINES {
        let chips = entries.iter().filter(|e| e.gsi == gsi).count();
        assert_eq!(chips, controllers_of(gsi), "line {gsi}");
    }
}

#[test]
fn a_full_table_is_an_error_that_says_so() {
    let mut routes = IrqRoutes::default();
    let max = 4096 - routes.entries().len();
    for n in 0..max as u32 {
        routes.add(message(n)).unwrap();
    }
    let error = routes.add(message(0)).unwrap_err();
    assert!(matches!(error, VmError::NoFreeRoute { max: told } if told as usize == max), "{error}");
    assert_eq!(routes.entries().len(), 4096);
}

#[test]
#[allow(unsafe_code)] // KVM's entries are a union
fn a_message_says_whose_it_is_where_that_matters() {
    let mut routes = IrqRoutes::default();
    routes.add(message(1).from_requester(0x28)).unwrap();
    let entries = routes.entries();
    let entry = entries.iter().find(|entry| entry.type_ == KVM_IRQ_ROUTING_MSI).unwrap();
    // SAFETY: a message's entry, all of which is numbers.
    let sender = unsafe { entry.u.msi.__bindgen_anon_1.devid };
    let expected = if MESSAGES_HAVE_SENDERS { (KVM_MSI_VALID_DEVID, 0x28) } else { (0, 0) };
    assert_eq!((entry.flags, sender), expected);
}
