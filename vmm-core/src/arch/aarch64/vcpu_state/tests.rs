use kvm_bindings::KVM_ARM_VCPU_PSCI_0_2;

use super::*;

const PFR0: u64 = 0x6030_0000_0013_c020;
const SCTLR: u64 = 0x6030_0000_0013_c080;
const VIRTUAL_COUNTER: u64 = 0x6030_0000_0013_df1a;

fn file(registers: &[(u64, u64)]) -> RegisterFile {
    let bytes: Vec<_> =
        registers.iter().flat_map(|(id, value)| [id.to_le_bytes(), value.to_le_bytes()].concat()).collect();
    RegisterFile::from_bytes(&bytes).unwrap()
}

/// vCPU 1 of a machine, with a few registers.
fn parts() -> VcpuParts {
    VcpuParts {
        features: Features::from_bits(1 << KVM_ARM_VCPU_PSCI_0_2).unwrap(),
        registers: file(&[
            (MPIDR.0, MPIDR_RES1 | 1),
            (PFR0, 0x11),
            (SCTLR, 0x30d0_0800),
            (VIRTUAL_COUNTER, 1_000),
        ]),
        mp_state: KVM_MP_STATE_STOPPED,
        serror: None,
        frequency: sys::counter_frequency(),
        is_reset: false,
    }
}

#[test]
fn a_state_is_bytes_and_back() {
    for serror in [None, Some(None), Some(Some(0x1234))] {
        let parts = VcpuParts { serror, ..parts() };
        assert_eq!(VcpuParts::from_saved(&parts.to_saved()).unwrap(), parts);
    }
}

#[test]
fn states_of_another_architecture_and_damaged_ones_are_refused_by_name() {
    let saved = parts().to_saved();
    let foreign = SavedState::new("org.ossature.vcpu.x86_64", VERSION, saved.payload.clone());
    let error = VcpuParts::from_saved(&foreign).unwrap_err().to_string();
    assert!(error.contains("org.ossature.vcpu.x86_64") && error.contains(KIND), "{error}");
    for len in 0..saved.payload.len() {
        let part = SavedState::new(KIND, VERSION, &saved.payload[..len]);
        assert!(VcpuParts::from_saved(&part).is_err(), "{len} bytes");
    }
    let refused = |features: u32, mp_state: u32, serror: &[u8]| {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u32(FEATURES, features).bytes(REGISTERS, &[]).u32(MP_STATE, mp_state);
        fields.bytes(SERROR, serror).u64(FREQUENCY, 1);
        VcpuParts::from_saved(&fields.finish()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(refused(4, KVM_MP_STATE_RUNNABLE, &[]), Ok(()));
    assert!(refused(1 << 20, KVM_MP_STATE_RUNNABLE, &[]).unwrap_err().contains("features"));
    // Halted is what a vCPU of x86 is.
    assert!(refused(4, 3, &[]).unwrap_err().contains("multiprocessing state"));
    assert!(refused(4, KVM_MP_STATE_RUNNABLE, &[0; 7]).unwrap_err().contains("pending SError"));
}

#[test]
fn a_state_of_another_vcpu_or_another_clock_is_refused_by_name() {
    let error = |result: Result<(), VmError>| result.unwrap_err().to_string();
    assert!(parts().check(1).is_ok());
    assert!(error(parts().check(0)).contains("MPIDR_EL1"));
    let faster = VcpuParts { frequency: sys::counter_frequency() + 1, ..parts() };
    assert!(error(faster.check(1)).contains(&format!("a counter of {} Hz", faster.frequency)));
}

#[test]
fn what_a_host_has_not_is_named() {
    let parts = parts();
    let differing =
        |here: &[(u64, u64)]| differing_features(&parts.registers, &file(here)).map(|all| all.len());
    let id = (MPIDR.0, MPIDR_RES1);
    assert_eq!(differing(&[id, (PFR0, 0x11), (SCTLR, 0), (VIRTUAL_COUNTER, 0)]).unwrap(), 0);
    // More than the state has does no harm; what differs is to be tried.
    let more = [id, (PFR0, 0x12), (PFR0 + 1, 7), (SCTLR, 0), (VIRTUAL_COUNTER, 0)];
    assert_eq!(differing(&more).unwrap(), 1);
    let current = file(&more);
    let error = lacks(RegisterId(PFR0), &0x11_u64.to_le_bytes(), &current).to_string();
    assert!(error.contains("ID_AA64PFR0_EL1 of 0x11: this one has 0x12"), "{error}");
    // The last one, one in the middle, all of them.
    for here in [&more[..4], &[id, more[1], more[4]], &[]] {
        let error = differing(here).unwrap_err().to_string();
        assert!(error.contains("register"), "{error}");
    }
    assert!(differing(&more[..4]).unwrap_err().to_string().contains("CNTVCT_EL0, which is 0x3e8"));
}

#[test]
fn the_counter_goes_on_by_its_frequency_and_a_reset_leaves_it_alone() {
    let mut later = VcpuParts { frequency: 25_000_000, ..parts() };
    later.advance(2_000_000_000);
    let counter = RegisterId(VIRTUAL_COUNTER);
    assert_eq!(later.registers.get_u64(counter), Some(1_000 + 50_000_000));
    assert_eq!(later.registers.get_u64(RegisterId(SCTLR)), Some(0x30d0_0800));
    assert_eq!(later.for_reset().registers.get(counter), None);
    // A hostile age does not overflow.
    let mut never = parts();
    never.advance(u64::MAX);
}

/// A vCPU with SVE that has set TPIDR_EL1 and a vector, of Linux 6.1's KVM on an emulated processor. Each later release
/// reads it.
#[test]
fn v1_a_golden_state_is_decoded() {
    const GOLDEN: &[u8] = include_bytes!("../../../../tests/golden/v1-vcpu-aarch64.state");
    let parts = VcpuParts::from_saved(&SavedState::new(KIND, 1, GOLDEN)).unwrap();
    assert!(parts.features.has_sve() && parts.made_with().sve_lengths.is_some());
    assert_eq!(parts.registers.get_u64(RegisterId(0x6030_0000_0013_c684)), Some(0x1234_5678));
    assert_eq!(&parts.registers.get(RegisterId(0x6080_0000_0015_0000)).unwrap()[..16], b"all of a vector.");
    assert_eq!((parts.mp_state, parts.serror, parts.frequency), (KVM_MP_STATE_RUNNABLE, None, 62_500_000));
    assert_eq!(parts.to_saved().payload, GOLDEN);
}
