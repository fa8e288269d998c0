//! The CPUID that a guest reads.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests, too, may panic

mod guest;

use guest::Guest;
use guest::Seen::Write;
use ossature_core::{
    CpuidRegisters, Hypervisor, Irqchip, Kvm, Registers, Step, VmConfig, VmError, error_chain,
};

/// What the guest of this configuration reads.
fn read(config: VmConfig, leaf: u32, subleaf: u32) -> CpuidRegisters {
    let code = [
        0x0f, 0xa2, // cpuid
        0x66, 0xe7, 0x80, // out 0x80, eax
        0x66, 0x89, 0xd8, 0x66, 0xe7, 0x80, // ebx
        0x66, 0x89, 0xc8, 0x66, 0xe7, 0x80, // ecx
        0x66, 0x89, 0xd0, 0x66, 0xe7, 0x80, // edx
        0xf4,
    ];
    let guest = Guest::new(config.irqchip(Irqchip::None), &code);
    let registers = Registers { rax: leaf.into(), rcx: subleaf.into(), ..Registers::real_mode(guest::CODE) };
    let mut vcpu = guest.vcpu_with(0, registers);
    while vcpu.run_once().expect("a guest that halts") != Step::Halted {}
    let told: Vec<_> = guest.ports.take();
    match told[..] {
        [Write(_, _, eax), Write(_, _, ebx), Write(_, _, ecx), Write(_, _, edx)] => {
            CpuidRegisters { eax: eax as u32, ebx: ebx as u32, ecx: ecx as u32, edx: edx as u32 }
        }
        _ => panic!("{told:?}"),
    }
}

#[test]
fn a_hook_adds_overrides_and_removes_leaves() {
    let added = CpuidRegisters { eax: 0x4000_0010, ebx: 7, ecx: 8, edx: 9 };
    let config = VmConfig::default().cpuid(move |cpuid, index| {
        assert_eq!(index, 0);
        cpuid.set(0x4000_0010, 0, added)?;
        // A signature: some hosts add features that they cannot hide.
        cpuid.update(1, 0, |leaf| leaf.eax = 0x1234)?;
        cpuid.remove(0x8000_0004)
    });
    assert_eq!(read(config.clone(), 0x4000_0010, 0), added);
    assert_eq!(read(config.clone(), 1, 0).eax, 0x1234);
    assert_eq!(read(config, 0x4000_0000, 0).eax, 0x4000_0010);
}

#[test]
fn an_error_of_the_hook_names_vcpu_and_leaf() {
    let config =
        VmConfig::new(2).cpuid(|cpuid, index| if index == 1 { cpuid.remove(0x1234_5678) } else { Ok(()) });
    let guest = Guest::new(config, &[]);
    let _first = guest.vcpu(0);
    let error = guest.vm.create_vcpu(1, guest.buses()).expect_err("no such leaf");
    let text = error_chain(&error);
    assert!(text.starts_with("vCPU 1 ") && text.contains("0x12345678"), "{text}");
}

#[test]
fn a_leaf_that_kvm_refuses_is_named() {
    // A width of linear addresses that no processor has.
    let config = VmConfig::default().cpuid(|cpuid, _| {
        cpuid.update(1, 0, |leaf| leaf.eax = 0)?;
        cpuid.update(0x8000_0008, 0, |leaf| leaf.eax = leaf.eax & !0xff00 | 0x1200)
    });
    let vm = Kvm::open().expect("KVM").create_vm(&config).expect("a machine");
    let guest = Guest::bare(&[]);
    let error = vm.create_vcpu(0, guest.buses()).expect_err("no such width");
    let text = error_chain(&error);
    assert!(matches!(error, VmError::VcpuConfig { index: 0, .. }), "{text}");
    assert!(text.contains("0x80000008"), "{text}");
}

#[test]
fn g7_the_guest_has_the_hosts_name() {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").expect("procfs");
    let host = cpuinfo.lines().find_map(|line| line.strip_prefix("model name\t: ")).expect("a name");
    let leaves = (0x8000_0002..=0x8000_0004).map(|leaf| read(VmConfig::default(), leaf, 0));
    let bytes = leaves.flat_map(|r| [r.eax, r.ebx, r.ecx, r.edx]).flat_map(u32::to_le_bytes);
    let name: Vec<_> = bytes.filter(|byte| *byte != 0).collect();
    assert_eq!(String::from_utf8_lossy(&name).trim(), host.trim());
}
