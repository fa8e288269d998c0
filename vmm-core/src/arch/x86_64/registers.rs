//! A vCPU's registers as plain data.

use std::fmt;

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use ossature_bus::state::{Decoder, Encoder, Field, StateError};

use super::plain::Plain;

const REGS: Field = Field::new(1, "registers");
const SREGS: Field = Field::new(2, "system registers");

/// A segment register with its hidden part. On x86_64 only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentRegister {
    /// Selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, the granularity already applied.
    pub limit: u32,
    /// Access rights as in bits 40 to 55 of a descriptor: type, S, DPL, P, AVL, L, D/B, G (SDM vol. 3, 3.4.5).
    /// The four bits of the limit between them are 0. A register without a segment is not present.
    pub access: u16,
}

/// A descriptor-table register. On x86_64 only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// The registers that say where a vCPU is and in which mode. Its fields are x86_64's; on aarch64 the type of this name has
/// others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the processor's
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cs: SegmentRegister,
    pub ds: SegmentRegister,
    pub es: SegmentRegister,
    pub fs: SegmentRegister,
    pub gs: SegmentRegister,
    pub ss: SegmentRegister,
    pub tr: SegmentRegister,
    pub ldt: SegmentRegister,
    pub gdt: Table,
    pub idt: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

/// RFLAGS after reset: only the bit that is always set.
const RFLAGS_RESET: u64 = 2;
/// CR0.ET, always set.
const CR0_ET: u64 = 1 << 4;

/// Present, data or code segment of type read/write, accessed.
const REAL_MODE_DATA: u16 = 0x93;
/// Present, code segment, readable, accessed.
const REAL_MODE_CODE: u16 = 0x9b;

impl Registers {
    /// Real mode with all segments at 0, about to execute at `ip`: the least that runs code. On x86_64 only.
    pub fn real_mode(ip: u16) -> Self {
        let data = SegmentRegister { limit: 0xffff, access: REAL_MODE_DATA, ..SegmentRegister::default() };
        Self {
            rip: ip.into(),
            rflags: RFLAGS_RESET,
            cs: SegmentRegister { access: REAL_MODE_CODE, ..data },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: SegmentRegister { limit: 0xffff, access: 0x8b, ..SegmentRegister::default() },
            ldt: SegmentRegister { limit: 0xffff, access: 0x82, ..SegmentRegister::default() },
            gdt: Table { base: 0, limit: 0xffff },
            idt: Table { base: 0, limit: 0xffff },
            cr0: CR0_ET,
            ..Self::default()
        }
    }

    /// The registers as the fields of a state.
    pub(crate) fn encode(&self, fields: &mut Encoder) {
        let mut sregs = kvm_sregs::default();
        self.apply_to_kvm_sregs(&mut sregs);
        fields.bytes(REGS, self.to_kvm_regs().to_bytes()).bytes(SREGS, sregs.to_bytes());
    }

    /// The registers that are the fields of a state.
    pub(crate) fn decode(fields: &mut Decoder<'_>) -> Result<Self, StateError> {
        Ok(Self::from_kvm(&Plain::decode(fields, REGS)?, &Plain::decode(fields, SREGS)?))
    }

    pub(crate) fn from_kvm(regs: &kvm_regs, sregs: &kvm_sregs) -> Self {
        Self {
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rsp: regs.rsp,
            rbp: regs.rbp,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            rip: regs.rip,
            rflags: regs.rflags,
            cs: segment_from_kvm(&sregs.cs),
            ds: segment_from_kvm(&sregs.ds),
            es: segment_from_kvm(&sregs.es),
            fs: segment_from_kvm(&sregs.fs),
            gs: segment_from_kvm(&sregs.gs),
            ss: segment_from_kvm(&sregs.ss),
            tr: segment_from_kvm(&sregs.tr),
            ldt: segment_from_kvm(&sregs.ldt),
            gdt: Table { base: sregs.gdt.base, limit: sregs.gdt.limit },
            idt: Table { base: sregs.idt.base, limit: sregs.idt.limit },
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
        }
    }

    pub(crate) fn to_kvm_regs(self) -> kvm_regs {
        kvm_regs {
            rax: self.rax,
            rbx: self.rbx,
            rcx: self.rcx,
            rdx: self.rdx,
            rsi: self.rsi,
            rdi: self.rdi,
            rsp: self.rsp,
            rbp: self.rbp,
            r8: self.r8,
            r9: self.r9,
            r10: self.r10,
            r11: self.r11,
            r12: self.r12,
            r13: self.r13,
            r14: self.r14,
            r15: self.r15,
            rip: self.rip,
            // A guest state without the bit that is always set is refused by the processor.
            rflags: self.rflags | RFLAGS_RESET,
        }
    }

    /// Writes what this type knows into `sregs`, and leaves the rest (the APIC base, pending interrupts).
    pub(crate) fn apply_to_kvm_sregs(&self, sregs: &mut kvm_sregs) {
        sregs.cs = segment_to_kvm(&self.cs);
        sregs.ds = segment_to_kvm(&self.ds);
        sregs.es = segment_to_kvm(&self.es);
        sregs.fs = segment_to_kvm(&self.fs);
        sregs.gs = segment_to_kvm(&self.gs);
        sregs.ss = segment_to_kvm(&self.ss);
        sregs.tr = segment_to_kvm(&self.tr);
        sregs.ldt = segment_to_kvm(&self.ldt);
        sregs.gdt = kvm_dtable { base: self.gdt.base, limit: self.gdt.limit, ..kvm_dtable::default() };
        sregs.idt = kvm_dtable { base: self.idt.base, limit: self.idt.limit, ..kvm_dtable::default() };
        sregs.cr0 = self.cr0;
        sregs.cr2 = self.cr2;
        sregs.cr3 = self.cr3;
        sregs.cr4 = self.cr4;
        sregs.efer = self.efer;
    }
}

/// What [`Registers::apply_to_kvm_sregs`] leaves alone, as it is in vCPU `index` of a machine with interrupt
/// controllers before it has run (SDM vol. 3, 11.4.4): the local APIC at its address and on, and whether this is the
/// processor that starts.
pub(crate) fn reset_sregs(index: u32) -> kvm_sregs {
    const BASE: u64 = 0xfee0_0000;
    const ENABLED: u64 = 1 << 11;
    const BOOTSTRAP: u64 = 1 << 8;
    let bootstrap = if index == 0 { BOOTSTRAP } else { 0 };
    kvm_sregs { apic_base: BASE | ENABLED | bootstrap, ..kvm_sregs::default() }
}

fn segment_from_kvm(s: &kvm_segment) -> SegmentRegister {
    let bit = |value: u8, shift: u32| u16::from(value & 1) << shift;
    let access = u16::from(s.type_ & 0xf)
        | bit(s.s, 4)
        | u16::from(s.dpl & 3) << 5
        | bit(s.present, 7)
        | bit(s.avl, 12)
        | bit(s.l, 13)
        | bit(s.db, 14)
        | bit(s.g, 15);
    SegmentRegister { selector: s.selector, base: s.base, limit: s.limit, access }
}

fn segment_to_kvm(s: &SegmentRegister) -> kvm_segment {
    let bit = |shift: u32| (s.access >> shift & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.access & 0xf) as u8,
        present: bit(7),
        dpl: (s.access >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: 1 - bit(7),
        padding: 0,
    }
}

impl fmt::Display for SegmentRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x} base {:016x} limit {:08x} access {:04x}",
            self.selector, self.base, self.limit, self.access
        )
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let general = [
            [("rax", self.rax), ("rbx", self.rbx), ("rcx", self.rcx), ("rdx", self.rdx)],
            [("rsi", self.rsi), ("rdi", self.rdi), ("rsp", self.rsp), ("rbp", self.rbp)],
            [("r8 ", self.r8), ("r9 ", self.r9), ("r10", self.r10), ("r11", self.r11)],
            [("r12", self.r12), ("r13", self.r13), ("r14", self.r14), ("r15", self.r15)],
            [("rip", self.rip), ("rfl", self.rflags), ("cr0", self.cr0), ("cr2", self.cr2)],
        ];
        for row in general {
            for (i, (name, value)) in row.iter().enumerate() {
                write!(f, "{}{name} {value:016x}", if i == 0 { "" } else { "  " })?;
            }
            writeln!(f)?;
        }
        writeln!(f, "cr3 {:016x}  cr4 {:016x}  efer {:016x}", self.cr3, self.cr4, self.efer)?;
        for (name, segment) in [("cs ", &self.cs), ("ss ", &self.ss), ("ds ", &self.ds), ("tr ", &self.tr)] {
            writeln!(f, "{name} {segment}")?;
        }
        write!(
            f,
            "gdt base {:016x} limit {:04x}  idt base {:016x} limit {:04x}",
            self.gdt.base, self.gdt.limit, self.idt.base, self.idt.limit
        )
    }
}

#[cfg(test)]
mod tests;
