//! Guests of a few instructions on this machine's KVM: exits, kicks, crashes.
#![allow(clippy::unwrap_used)] // helpers of tests, too, may panic

use std::sync::{Arc, Mutex};

use ossature_bus::{Access, BusFault, Effect, Mmio, VmRequest};
use ossature_core::*;
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Ram, RamConfig};

#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, usize, Option<u64>)>>);

impl Mmio for Recorder {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        self.0.lock().unwrap().push((at.offset, at.size as usize, None));
        Ok(0x1122_3344_5566_7788 & at.size.mask())
    }
    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        self.0.lock().unwrap().push((at.offset, at.size as usize, Some(value)));
        Ok(if at.offset == 0x604 { Effect::Vm(VmRequest::Shutdown) } else { Effect::None })
    }
}

#[test]
fn real_mode_code_runs() {
    let ram = Ram::new(&RamConfig::new(0x10000)).unwrap();
    // mov al, 'x'; mov dx, 0x3f8; out dx, al; hlt
    ram.dma().write(GuestAddress(0x1000), b"\xb0x\xba\xf8\x03\xee\xf4").unwrap();
    let vm =
        Kvm::open().unwrap().create_vm(&VmConfig { irqchip: Irqchip::None, ..VmConfig::default() }).unwrap();
    vm.set_memory(&ram).unwrap();
    let (pio, mmio) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    let buses = Buses { pio: BusCursor::new(pio.clone()), mmio: BusCursor::new(mmio) };
    let mut vcpu = vm.create_vcpu(0, buses).unwrap();
    vcpu.set_registers(&Registers::real_mode(0x1000)).unwrap();
    assert_eq!(vcpu.run_once().unwrap(), Step::Handled);
    assert_eq!(vcpu.run_once().unwrap(), Step::Halted);
    assert_eq!(*pio.0.lock().unwrap(), [(0x3f8, 1, Some(b'x'.into()))]);
}
