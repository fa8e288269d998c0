//! Which features of a processor a guest has seen that another host lacks.

use super::cpuid::{Cpuid, CpuidRegisters};
use crate::VmError;

type Register = fn(&CpuidRegisters) -> u32;

const EAX: (&str, Register) = ("EAX", |r| r.eax);
const EBX: (&str, Register) = ("EBX", |r| r.ebx);
const ECX: (&str, Register) = ("ECX", |r| r.ecx);
const EDX: (&str, Register) = ("EDX", |r| r.edx);

/// Leaf, subleaf and register of each 32 features, and the names of those that are well known, from bit 0 on (SDM vol. 2A,
/// CPUID; APM vol. 3, appendix E; the kernel's documentation of KVM's own leaves).
const FEATURES: &[(u32, u32, (&str, Register), &str)] = &[
    (
        0x1,
        0,
        ECX,
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cnxt_id sdbg fma cx16 xtpr pdcm - pcid dca \
         sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    (
        0x1,
        0,
        EDX,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi mmx fxsr sse \
         sse2 ss ht tm - pbe",
    ),
    (0x6, 0, EAX, "dts ida arat"),
    (
        0x7,
        0,
        EBX,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt avx512f avx512dq rdseed adx \
         smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    (
        0x7,
        0,
        ECX,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
         avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid",
    ),
    (0x7, 0, EDX, ""),
    (0x7, 1, EAX, "sha512 sm3 sm4 - avx_vnni avx512_bf16"),
    (0x7, 1, EDX, ""),
    (0x7, 2, EDX, ""),
    (0xd, 0, EAX, "x87_state sse_state avx_state"),
    (0xd, 0, EDX, ""),
    (0xd, 1, EAX, "xsaveopt xsavec xgetbv1 xsaves"),
    (0xd, 1, ECX, ""),
    (0x4000_0001, 0, EAX, "kvmclock nop_io_delay mmu_op kvmclock2 async_pf steal_time pv_eoi pv_unhalt"),
    (
        0x8000_0001,
        0,
        ECX,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
         fma4 tce - - - tbm topoext perfctr_core",
    ),
    (
        0x8000_0001,
        0,
        EDX,
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr \
         fxsr_opt gbpages rdtscp - lm 3dnowext 3dnow",
    ),
    (0x8000_0007, 0, EDX, "- - - - - - - - constant_tsc"),
    (0x8000_0008, 0, EBX, "clzero irperf xsaveerptr"),
    (0x8000_000a, 0, EDX, "npt lbrv svm_lock nrip_save"),
    (0x8000_0021, 0, EAX, ""),
];

/// The leaf whose registers have the processor's maker.
const MAKER: u32 = 0;
/// The leaf with the width of addresses.
const ADDRESSES: u32 = 0x8000_0008;

/// Fails if a guest with the CPUID `guest` cannot go on where `host` is all that there is.
pub(super) fn check(guest: &Cpuid, host: &Cpuid) -> Result<(), VmError> {
    let get = |cpuid: &Cpuid, leaf, subleaf| cpuid.get(leaf, subleaf).unwrap_or_default();
    let maker = |cpuid| {
        let CpuidRegisters { ebx, ecx, edx, .. } = get(cpuid, MAKER, 0);
        let bytes: Vec<u8> = [ebx, edx, ecx].into_iter().flat_map(u32::to_le_bytes).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let lacks = |feature: String| Err(VmError::MissingFeature { feature });
    if maker(guest) != maker(host) {
        return lacks(format!("a processor by {:?}: this one is by {:?}", maker(guest), maker(host)));
    }
    for &(leaf, subleaf, (register, value), names) in FEATURES {
        let missing = value(&get(guest, leaf, subleaf)) & !value(&get(host, leaf, subleaf));
        if missing != 0 {
            let bit = missing.trailing_zeros();
            let name = names.split_whitespace().nth(bit as usize).filter(|name| *name != "-");
            let name = name.map(|name| format!("{name}, ")).unwrap_or_default();
            return lacks(format!("{name}CPUID leaf {leaf:#x}, subleaf {subleaf}, {register}, bit {bit}"));
        }
    }
    let bits = |cpuid| get(cpuid, ADDRESSES, 0).eax & 0xff;
    if bits(guest) > bits(host) {
        return lacks(format!("{} bits of physical addresses: this one has {}", bits(guest), bits(host)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuid(leaves: &[(u32, u32, CpuidRegisters)]) -> Cpuid {
        let mut cpuid = Cpuid { entries: Vec::new() };
        for (leaf, subleaf, registers) in leaves {
            cpuid.set(*leaf, *subleaf, *registers).unwrap();
        }
        cpuid
    }

    #[test]
    fn a_feature_that_a_host_lacks_is_named() {
        let leaf = |ebx| cpuid(&[(7, 0, CpuidRegisters { ebx, ..Default::default() })]);
        assert!(check(&leaf(1 << 5), &leaf(1 << 5 | 1 << 16)).is_ok());
        let error = check(&leaf(1 << 16 | 1 << 5), &leaf(1 << 5)).unwrap_err().to_string();
        assert!(error.contains("avx512f, CPUID leaf 0x7, subleaf 0, EBX, bit 16"), "{error}");
        assert!(check(&leaf(1), &cpuid(&[])).is_err());
    }

    #[test]
    fn another_maker_and_wider_addresses_are_refused() {
        let maker = |ebx| cpuid(&[(0, 0, CpuidRegisters { ebx, ..Default::default() })]);
        let [intel, amd] = [*b"Genu", *b"Auth"].map(u32::from_le_bytes);
        assert!(check(&maker(intel), &maker(intel)).is_ok());
        assert!(check(&maker(intel), &maker(amd)).unwrap_err().to_string().contains("Auth"));
        let width = |eax| cpuid(&[(0x8000_0008, 0, CpuidRegisters { eax, ..Default::default() })]);
        assert!(check(&width(39), &width(46)).is_ok());
        assert!(check(&width(46), &width(39)).unwrap_err().to_string().contains("46 bits"));
    }

    #[test]
    fn names_are_for_bits() {
        assert!(FEATURES.iter().all(|(.., names)| names.split_whitespace().count() <= 32));
        let name = |leaf, at: (&str, Register), bit| {
            let (.., names) =
                FEATURES.iter().find(|(l, s, (r, _), _)| (*l, *s, *r) == (leaf, 0, at.0)).unwrap();
            names.split_whitespace().nth(bit).unwrap()
        };
        assert_eq!(
            [name(1, ECX, 31), name(1, ECX, 25), name(1, EDX, 25), name(7, EBX, 18), name(7, ECX, 16)],
            ["hypervisor", "aes", "sse", "rdseed", "la57"]
        );
        assert_eq!([name(0x8000_0001, EDX, 29), name(0x8000_0001, EDX, 20)], ["lm", "nx"]);
    }
}
