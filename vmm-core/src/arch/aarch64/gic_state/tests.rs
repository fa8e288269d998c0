use ossature_bus::state::SavedState;

use super::*;

/// A GIC of two vCPUs whose registers are all different.
fn state(version: Version, priority_bits: u64) -> GicState {
    let numbers = |count: usize| (1..).take(count).collect::<Vec<u32>>();
    let control = (priority_bits - 1) << 8;
    let mut interface: Vec<u64> = (0..version.interface(control).len() as u64).collect();
    interface[ICC_CTLR_INDEX] = control;
    let levels = usize::from(version == Version::V3);
    let vcpu = VcpuState { private: numbers(version.private().len() + levels), interface };
    let distributor = numbers(version.distributor().len() + version.lines().len());
    GicState { version, type_: 3, implementer: 0x43b, distributor, vcpus: vec![vcpu.clone(), vcpu] }
}

fn saved(state: &GicState) -> SavedState<'static> {
    let mut fields = Encoder::new("test", 1);
    state.encode(&mut fields);
    fields.finish()
}

fn decoded(saved: &SavedState<'_>, version: Version) -> Result<GicState, StateError> {
    let mut fields = Decoder::new(saved, "test", 1..=1)?;
    let state = GicState::decode(&mut fields, version)?;
    fields.finish().map(|()| state)
}

#[test]
fn a_state_is_bytes_and_back_whatever_priorities_it_has() {
    for priority_bits in 1..=8 {
        let state = state(Version::V3, priority_bits);
        assert_eq!(decoded(&saved(&state), Version::V3).unwrap(), state);
    }
    let state = state(Version::V2, 5);
    assert_eq!(decoded(&saved(&state), Version::V2).unwrap(), state);
}

#[test]
fn what_is_read_of_a_vcpu_has_its_affinity() {
    assert_eq!(of_vcpu(17, level_info(0)), 0x101 << 32);
    assert_eq!(of_vcpu(7, 0xf20), 7 << 32 | 0xf20);
}

#[test]
fn a_level_line_of_a_gic_v2_is_asserted_if_it_is_pending() {
    let mut state = state(Version::V2, 5);
    state.distributor.fill(0);
    let offsets = Version::V2.distributor();
    let mut set = |offset: u64, value| {
        let at = offsets.iter().position(|at| *at == offset).unwrap();
        state.distributor[at] = value;
    };
    // Lines 0, 1 and 95 are pending; line 1 is for edges.
    set(GICD_ISPENDR + 4, 0b11);
    set(GICD_ISPENDR + 12, 1 << 31);
    set(GICD_ICFGR + 8, 0b1000);
    let shared = state.shared();
    let asserted: Vec<u32> = (0..WIRED_LINES).filter(|line| shared.is_asserted(*line)).collect();
    assert_eq!(asserted, [0, 95]);
    // Those are not set pending besides.
    assert_eq!(shared.to_write(GICD_ISPENDR + 4, 0b11), 0b10);
    assert_eq!(shared.to_write(GICD_ISPENDR + 12, 1 << 31), 0);
    assert_eq!(shared.to_write(GICD_ISPENDR + 16, 0b11), 0b11);
}

#[test]
fn a_private_level_line_of_a_gic_v2_is_not_set_pending_either() {
    let offsets = Version::V2.private();
    let values: Vec<u32> = offsets
        .iter()
        // Interrupts of software have edges, and so has 31.
        .map(|offset| match offset.checked_sub(GICD_ICFGR) {
            Some(0) => 0xaaaa_aaaa,
            Some(4) => 0x8000_0000,
            _ => 0,
        })
        .collect();
    let own = Registers { version: Version::V2, offsets, values: &values };
    assert_eq!(own.to_write(GICD_ISPENDR, 0x8800_0001), 0x8000_0001);
    assert_eq!(own.to_write(GICD_ISPENDR + 0x100, 0x8800_0001), 0x8800_0001, "what is active");
}

#[test]
fn an_interface_can_be_told_to_have_less_but_not_more() {
    let here = 4 << 8 | 1 << 11 | 1 << 15;
    for wanted in [here, 3 << 8 | 1 << 11 | 1 << 15, 4 << 8 | 1 << 15, here | 0b11] {
        assert!(is_able(here, wanted), "{wanted:#x}");
    }
    let more = [5 << 8 | 1 << 11 | 1 << 15, 4 << 8 | 2 << 11 | 1 << 15, 4 << 8 | 1 << 11, here | 1 << 14];
    for wanted in more.into_iter().chain([2 << 8 | 1 << 11 | 1 << 15]) {
        assert!(!is_able(here, wanted), "{wanted:#x}");
    }
    assert!(is_able(0, 0), "a GICv2 has none");
    // A reset keeps what it can, and sets the rest.
    assert_eq!(with_abilities_of(here | 0b11, 6 << 8 | 2), here | 2);
}

#[test]
fn hostile_states_are_refused() {
    for version in [Version::V2, Version::V3] {
        let good = saved(&state(version, 5));
        for len in 0..good.payload.len() {
            let part = SavedState::new("test", 1, &good.payload[..len]);
            // The list of vCPUs may end after each of them only if it says so.
            assert!(decoded(&part, version).is_err(), "{len} bytes");
        }
        let changed = |change: fn(&mut GicState)| {
            let mut state = state(version, 5);
            change(&mut state);
            decoded(&saved(&state), version).map(|_| ()).map_err(|error| error.to_string())
        };
        let refused = |change, name: &str| assert!(changed(change).unwrap_err().contains(name), "{version}");
        assert_eq!(changed(|state| state.vcpus.clear()), Ok(()));
        refused(|state| state.distributor.push(0), "distributor");
        refused(|state| _ = state.distributor.pop(), "distributor");
        refused(|state| state.vcpus[1].private.clear(), "private interrupts");
        refused(|state| _ = state.vcpus[0].interface.pop(), "CPU interface");
        refused(|state| state.vcpus[0].interface.clear(), "CPU interface");
        // As that of the other version.
        let other = if version == Version::V2 { Version::V3 } else { Version::V2 };
        assert!(decoded(&good, other).is_err());
    }
    // It claims to have more priorities than it has registers for.
    let mut state = state(Version::V3, 5);
    state.vcpus[0].interface[ICC_CTLR_INDEX] = 6 << 8;
    let error = decoded(&saved(&state), Version::V3).unwrap_err().to_string();
    assert!(error.contains("CPU interface"), "{error}");
}
