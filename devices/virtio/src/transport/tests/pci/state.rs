//! What the PCI transport saves, and what it refuses.

use ossature_bus::state::SavedState;

use super::*;

/// A rig whose device runs: queue 0 on vector 1, the configuration on vector 3, queue 1 without one.
fn running(shared: &Arc<Shared>) -> (Rig, GuestRing) {
    let rig = Rig::new(Sample::new(shared));
    rig.enable_msix(4);
    rig.set_space(0x10, Size::B4, 0xe000_0000);
    rig.set_space(0x04, Size::B2, 6);
    rig.negotiate(RING_RESET);
    rig.set(16, Size::B2, 3);
    let ring = rig.set_up(0, 16, 1);
    rig.set_up(1, 16, NO_VECTOR);
    rig.go();
    (rig, ring)
}

/// A fresh device on the same RAM.
fn fresh(dma: &Dma) -> Rig {
    let sample = Sample::new(&Arc::default());
    Rig::attached(dma.clone(), |runtime, bus| {
        VirtioPci::new("one", Box::new(sample), Arc::new(runtime.clone()), bus)
    })
}

#[test]
fn a_device_goes_on_where_it_was_saved() {
    let shared = Arc::default();
    let (mut rig, mut ring) = running(&shared);
    rig.request(0, &mut ring);
    shared.config.lock().unwrap().clone().unwrap().raise();
    rig.set(TABLE + 12, Size::B4, 1);
    let handover = rig.saved();
    let mut next = fresh(&rig.dma);
    drop(rig);
    next.device.restore(handover).unwrap();
    next.board.registers().iter().for_each(|range| range.moved(range.wanted()));
    assert_eq!(next.board.registers()[0].base(), Some(0xe000_0000));
    next.host.resume().unwrap();
    next.device.resume().unwrap();
    assert_eq!(next.all_sent(), [None, Some(0x41), None, Some(0x43)], "what may not have been seen");
    assert_eq!((next.status(), next.get(16, Size::B2), next.get(ISR, Size::B1)), (15, 3, 2));
    next.set(SELECT, Size::B2, 0);
    assert_eq!((next.get(VECTOR, Size::B2), next.get(ENABLE, Size::B2)), (1, 1));
    assert_eq!(next.get(TABLE + 12, Size::B4), 1);
    next.request(0, &mut ring);
    assert_eq!(next.sent(1), Some(0x41));
    assert_eq!(next.board.reports(), []);
}

#[test]
fn the_device_that_was_saved_goes_on_as_well() {
    let (mut rig, mut ring) = running(&Arc::default());
    let first = rig.saved();
    let second = rig.saved();
    assert_eq!(first.state, second.state);
    rig.device.resume().unwrap();
    rig.request(0, &mut ring);
    assert_eq!(rig.sent(1), Some(0x41));
}

#[test]
fn a_device_takes_the_place_of_another_on_the_same_registers() {
    let (mut rig, mut ring) = running(&Arc::default());
    let bus = PciBus::new();
    // The other one belongs to another bus: it cannot.
    let sample = || Box::new(Sample::new(&Arc::default()));
    let mut stranger = VirtioPci::new("one", sample(), Arc::new(rig.inline.clone()), &bus).at(4);
    let mut board = TestBoard::with_ram(rig.dma.clone());
    board.attach(&mut stranger).unwrap();
    let handover = rig.saved();
    assert!(matches!(stranger.restore(handover), Err(StateError::Inconsistent { field: "slot", .. })));
    rig.device.resume().unwrap();
    rig.request(0, &mut ring);
}

fn restore(rig: &mut Rig, state: &SavedState<'_>, payload: Vec<u8>) -> Result<(), StateError> {
    rig.device.restore(Handover::new(SavedState::new(
        state.kind.clone().into_owned(),
        state.version,
        payload,
    )))
}

#[test]
fn d1_d2_a_state_with_any_byte_changed_is_refused_or_harmless() {
    let (mut rig, _) = running(&Arc::default());
    let state = rig.saved().state;
    let mut next = fresh(&rig.dma);
    next.host.resume().unwrap();
    let mut refused = 0;
    for at in 0..state.payload.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut payload = state.payload.to_vec();
            payload[at] = value;
            match restore(&mut next, &state, payload) {
                Ok(()) => {
                    next.device.resume().unwrap();
                    next.inline.pump().unwrap();
                    next.device.quiesce().unwrap();
                }
                Err(_) => refused += 1,
            }
        }
        assert!(restore(&mut next, &state, state.payload[..at].to_vec()).is_err(), "cut at {at}");
    }
    assert!(refused > state.payload.len(), "{refused}");
    restore(&mut next, &state, state.payload.to_vec()).unwrap();
}

#[test]
fn a_refused_state_leaves_the_device_as_it_was() {
    let (mut rig, mut ring) = running(&Arc::default());
    let state = rig.saved().state;
    let mut payload = state.payload.to_vec();
    // The last byte is the function's pending bits: of vectors that it does not have.
    *payload.last_mut().unwrap() = 0x80;
    let refused = restore(&mut rig, &state, payload);
    assert!(matches!(refused, Err(StateError::Inconsistent { field: "pending bits", .. })), "{refused:?}");
    rig.device.resume().unwrap();
    rig.request(0, &mut ring);
    assert_eq!(rig.sent(1), Some(0x41));
}

#[test]
fn a_vector_that_does_not_exist_and_the_other_transports_state_are_refused() {
    let (mut rig, _) = running(&Arc::default());
    let state = rig.saved().state;
    // Tag 13: four vectors of two bytes each.
    let vectors: &[u8] = &[13, 0, 8, 0, 0, 0, 3, 0, 1, 0, 0xff, 0xff, 0xff, 0xff];
    let at = state.payload.windows(vectors.len()).position(|window| window == vectors).unwrap();
    let mut payload = state.payload.to_vec();
    payload[at + 6] = 4;
    let refused = restore(&mut rig, &state, payload);
    assert_eq!(refused, Err(StateError::Value { field: "vectors", value: 4 }));
    let (_, mut mmio) = sample();
    mmio.start(0);
    let refused = rig.device.restore(mmio.save().unwrap());
    assert!(matches!(refused, Err(StateError::Kind { .. })), "{refused:?}");
}

const GOLDEN: &str = include_str!("../../../../tests/golden/virtio-pci-1.hex");

#[test]
fn the_payload_is_the_golden_one_and_is_restored() {
    let golden: Vec<u8> = GOLDEN
        .lines()
        .flat_map(|line| line.split('#').next().unwrap().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let (mut rig, mut ring) = running(&Arc::default());
    rig.request(0, &mut ring);
    let state = rig.saved().state;
    let hex: Vec<String> = state
        .payload
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect();
    assert!(state.payload[..] == golden, "the bytes have changed:\n{}", hex.join("\n"));
    rig.device.reset().unwrap();
    restore(&mut rig, &SavedState::new("ossature.virtio-pci", 1, Vec::new()), golden).unwrap();
    rig.device.resume().unwrap();
    rig.request(0, &mut ring);
    assert_eq!(rig.sent(1), Some(0x41));
}
