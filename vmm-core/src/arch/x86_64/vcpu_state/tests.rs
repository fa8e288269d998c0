use std::borrow::Cow;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn parts() -> VcpuParts {
    VcpuParts {
        regs: kvm_regs { rbx: 7, ..Default::default() },
        sregs: kvm_sregs { cr3: 0x1000, ..Default::default() },
        xsave: (0..1024).collect(),
        xcrs: kvm_xcrs::default(),
        debug: kvm_debugregs { dr7: 0x400, ..Default::default() },
        events: kvm_vcpu_events::default(),
        msrs: vec![(0x10, u64::MAX), (0x174, 8)],
        lapic: Some(kvm_lapic_state::default()),
        mp_state: Some(1),
        tsc_khz: 2_000_000,
        cpuid: Arc::new(Cpuid { entries: [1, 7].map(|leaf| Cpuid::entry([leaf; 28])).to_vec() }),
        differing: Arc::default(),
    }
}

#[test]
fn a_state_survives_the_way_through_bytes() {
    let bare = VcpuParts { lapic: None, mp_state: None, ..parts() };
    for parts in [parts(), bare] {
        assert_eq!(VcpuParts::from_saved(&parts.to_saved()), Ok(parts));
    }
}

#[test]
fn a_guest_that_is_a_hypervisor_is_refused() {
    use kvm_bindings::{
        KVM_STATE_NESTED_FORMAT_SVM, KVM_STATE_NESTED_GIF_SET, kvm_nested_state__bindgen_ty_1,
    };
    let check = |flags: u32, format: u32, vmxon_pa: u64| {
        let mut state = KvmNestedStateBuffer::empty();
        (state.flags, state.format) = (flags as u16, format as u16);
        state.hdr = kvm_nested_state__bindgen_ty_1 { pad: [0; 120] };
        state.hdr.vmx.vmxon_pa = vmxon_pa;
        check_nested(&state)
    };
    let (vmx, svm) = (KVM_STATE_NESTED_FORMAT_VMX, KVM_STATE_NESTED_FORMAT_SVM);
    check(0, vmx, u64::MAX).unwrap();
    check(KVM_STATE_NESTED_GIF_SET, svm, 0).unwrap();
    for (flags, format, vmxon_pa) in [
        (0, vmx, 0x1000),
        (0, vmx, 0),
        (KVM_STATE_NESTED_GUEST_MODE, vmx, u64::MAX),
        (KVM_STATE_NESTED_GUEST_MODE | KVM_STATE_NESTED_GIF_SET, svm, 0),
    ] {
        let refused = check(flags, format, vmxon_pa).unwrap_err();
        assert!(refused.to_string().contains("a hypervisor itself"), "{refused}");
    }
}

#[test]
fn d2_parts_of_other_lengths_are_refused() {
    let refused = |parts: VcpuParts| VcpuParts::from_saved(&parts.to_saved()).unwrap_err();
    refused(VcpuParts { xsave: vec![0; MAX_XSAVE / 4 + 1], ..parts() });
    refused(VcpuParts { msrs: vec![(0, 0); MAX_MSRS + 1], ..parts() });
    let entries = vec![Cpuid::entry([0; 28]); Cpuid::MAX_BYTES / 28 + 1];
    refused(VcpuParts { cpuid: Arc::new(Cpuid { entries }), ..parts() });
    let mut short = Encoder::new(KIND, VERSION);
    short.bytes(REGS, &[0; 8]);
    assert!(VcpuParts::from_saved(&short.finish()).is_err());
}

proptest! {
    #[test]
    fn d2_any_bytes_are_a_state_or_an_error(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>()) {
        let mut saved = parts().to_saved();
        let mut bytes = saved.payload.to_vec();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(2 * bytes.len()));
        saved.payload = Cow::Owned(bytes);
        if let Ok(parts) = VcpuParts::from_saved(&saved) {
            prop_assert!(parts.msrs.len() <= MAX_MSRS);
        }
    }
}

#[test]
fn a_state_of_another_architecture_is_refused_by_name() {
    let foreign = SavedState::new("org.ossature.vcpu.aarch64", VERSION, Vec::new());
    let error = VcpuParts::from_saved(&foreign).unwrap_err().to_string();
    assert!(error.contains("org.ossature.vcpu.aarch64") && error.contains(KIND), "{error}");
}
