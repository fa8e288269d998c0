use ossature_bus::state::SavedState;

use super::*;

/// A GIC of two vCPUs whose registers are all different.
fn state(priority_bits: u64) -> GicState {
    let numbers = |count: usize| (1..).take(count).collect::<Vec<u32>>();
    let control = (priority_bits - 1) << 8;
    let mut interface: Vec<u64> = (0..interface_registers(control).count() as u64).collect();
    interface[1] = control;
    let vcpu = VcpuState { redistributor: numbers(redistributor().count() + 1), interface };
    let distributor = numbers(distributor().chain(lines()).count());
    GicState { type_: 3, implementer: 0x43b, distributor, vcpus: vec![vcpu.clone(), vcpu] }
}

fn saved(state: &GicState) -> SavedState<'static> {
    let mut fields = Encoder::new("test", 1);
    state.encode(&mut fields);
    fields.finish()
}

fn decoded(saved: &SavedState<'_>) -> Result<GicState, StateError> {
    let mut fields = Decoder::new(saved, "test", 1..=1)?;
    let state = GicState::decode(&mut fields)?;
    fields.finish().map(|()| state)
}

#[test]
fn a_state_is_bytes_and_back_whatever_priorities_it_has() {
    for priority_bits in 1..=8 {
        let state = state(priority_bits);
        assert_eq!(decoded(&saved(&state)).unwrap(), state);
    }
}

#[test]
fn banks_are_as_the_architecture_has_them() {
    let offsets: Vec<_> = distributor().collect();
    // 96 lines: 3 words of a bit each, 24 of priorities, 6 of two bits each, 192 of routes.
    assert_eq!(offsets.len(), 1 + 4 * 3 + 24 + 6 + 192);
    for offset in [0x0, 0x84, 0x104, 0x304, 0x420, 0x47c, 0xc08, 0xc1c, 0x6100, 0x63fc] {
        assert!(offsets.contains(&offset), "{offset:#x}");
    }
    let offsets: Vec<_> = redistributor().collect();
    assert_eq!(offsets.len(), 4 + 8 + 2 + 4 + 1);
    assert_eq!(offsets.last(), Some(&GICR_CTLR));
    assert!([0x1_0080, 0x1_0100, 0x1_041c, 0x1_0c04].iter().all(|offset| offsets.contains(offset)));
    let counts = [5, 6, 7].map(|bits| interface_registers((bits - 1) << 8).count());
    assert_eq!(counts, [9, 11, 15]);
    assert_eq!(of_vcpu(17, level_info(0)), 0x101 << 32);
}

#[test]
fn hostile_states_are_refused() {
    let good = saved(&state(5));
    for len in 0..good.payload.len() {
        let part = SavedState::new("test", 1, &good.payload[..len]);
        // The list of vCPUs may end after each of them only if it says so.
        assert!(decoded(&part).is_err(), "{len} bytes");
    }
    let changed = |change: fn(&mut GicState)| {
        let mut state = state(5);
        change(&mut state);
        decoded(&saved(&state)).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(changed(|state| state.vcpus.clear()), Ok(()));
    assert!(changed(|state| state.distributor.push(0)).unwrap_err().contains("distributor"));
    assert!(changed(|state| _ = state.distributor.pop()).unwrap_err().contains("distributor"));
    assert!(changed(|state| state.vcpus[1].redistributor.clear()).unwrap_err().contains("redistributor"));
    assert!(changed(|state| _ = state.vcpus[0].interface.pop()).unwrap_err().contains("CPU interface"));
    assert!(changed(|state| state.vcpus[0].interface.clear()).unwrap_err().contains("CPU interface"));
    // It claims to have more priorities than it has registers for.
    assert!(changed(|state| state.vcpus[0].interface[1] = 6 << 8).unwrap_err().contains("CPU interface"));
}
