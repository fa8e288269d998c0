//! What the benches do, with the raw rust-vmm crates: the least that a VMM has to add to them.

use std::hint::black_box;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use ossature::memory::GuestMmap;
use ossature::memory::vm_memory::{Address, Bytes, GuestMemoryBackend};
use virtio_queue::{DescriptorChain, Queue, QueueT};

use super::rings::{DeviceRig, Driver, QueueRig};

/// The raw crate on the driver's ring.
fn queue(driver: &Driver) -> Queue {
    let mut queue = Queue::new(driver.ring.size).unwrap();
    queue.set_size(driver.ring.size);
    let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
    let (low, high) = halves(driver.ring.desc);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(driver.ring.avail);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(driver.ring.used);
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(true);
    queue.set_ready(true);
    queue
}

/// Ends a batch as `flush` and `enable_kicks` do.
fn end(queue: &mut Queue, mem: &GuestMmap) {
    black_box(queue.needs_notification(mem).unwrap());
    assert!(!queue.enable_notification(mem).unwrap());
}

/// What [`QueueRig::batch`] does: every descriptor is looked at, every buffer checked.
pub struct RawQueue {
    rig: QueueRig,
    queue: Queue,
}

impl RawQueue {
    pub fn new(rig: QueueRig) -> Self {
        Self { queue: queue(&rig.driver), rig }
    }

    pub fn batch(&mut self) -> u64 {
        self.rig.driver.offer();
        let mem = self.rig.dma.memory();
        let mut bytes = 0;
        while let Some(chain) = self.queue.pop_descriptor_chain(mem) {
            let head = chain.head_index();
            for desc in chain {
                assert!(mem.check_range(desc.addr(), desc.len() as usize));
                bytes += u64::from(desc.len()) * u64::from(!desc.is_write_only());
            }
            self.queue.add_used(mem, head, 64).unwrap();
        }
        end(&mut self.queue, mem);
        bytes
    }
}

/// Serves a chain; returns the bytes written.
pub type Serve = fn(&GuestMmap, DescriptorChain<&GuestMmap>) -> u32;

/// What [`DeviceRig::batch`] does.
pub struct RawDevice {
    rig: DeviceRig,
    at: usize,
    queue: Queue,
}

impl RawDevice {
    /// In place of the rig's device, on its queue `at`.
    pub fn new(rig: DeviceRig, at: usize) -> Self {
        Self { queue: queue(&rig.drivers[at]), rig, at }
    }

    pub fn batch(&mut self, serve: Serve) {
        self.rig.drivers[self.at].offer();
        let mem = self.rig.dma.memory();
        while let Some(chain) = self.queue.pop_descriptor_chain(mem) {
            let head = chain.head_index();
            let written = serve(mem, chain);
            self.queue.add_used(mem, head, written).unwrap();
        }
        end(&mut self.queue, mem);
        self.rig.drivers[self.at].check();
    }
}

/// A read of a disk without contents.
pub fn read(mem: &GuestMmap, mut chain: DescriptorChain<&GuestMmap>) -> u32 {
    let header = chain.next().unwrap();
    assert!(!header.is_write_only() && header.len() == 16);
    let [kind, sector]: [u64; 2] = mem.read_obj(header.addr()).unwrap();
    let data = chain.next().unwrap();
    let last = sector.checked_add(u64::from(data.len()) / 512).unwrap();
    assert!(kind as u32 == 0 && last <= 1 << 16);
    assert!(data.is_write_only() && mem.check_range(data.addr(), data.len() as usize));
    let status = chain.next().unwrap();
    assert!(status.is_write_only());
    mem.write_obj(0u8, status.addr()).unwrap();
    data.len() + 1
}

/// A packet for a network that takes everything.
pub fn send(mem: &GuestMmap, mut chain: DescriptorChain<&GuestMmap>) -> u32 {
    let header: [u8; 12] = mem.read_obj(chain.next().unwrap().addr()).unwrap();
    black_box(header);
    let frame = chain.next().unwrap();
    assert!(mem.check_range(frame.addr(), frame.len() as usize));
    0
}

/// A packet of a network that has always one.
pub fn receive(mem: &GuestMmap, mut chain: DescriptorChain<&GuestMmap>) -> u32 {
    let buffer = chain.next().unwrap();
    assert!(buffer.is_write_only() && mem.check_range(buffer.addr(), buffer.len() as usize));
    mem.write_obj(1u16, buffer.addr().unchecked_add(10)).unwrap();
    12 + 1514
}

/// The tables of [`platform`](super::tables::platform) with the raw acpi_tables.
pub fn acpi() -> Vec<u8> {
    const BASE: u64 = 0xe_0000;
    let (oem, table) = (*b"OSSATU", *b"OSSATURE");
    let named = |name: &str, hid: &'static str, resources: Vec<&dyn Aml>| {
        let resources = aml::ResourceTemplate::new(resources);
        let (hid, crs) = (aml::Name::new("_HID".into(), &hid), aml::Name::new("_CRS".into(), &resources));
        let mut bytes = Vec::new();
        aml::Device::new(name.into(), vec![&hid, &crs]).to_aml_bytes(&mut bytes);
        bytes
    };
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, oem, table, 1);
    for (name, hid, port, len, irq) in
        [("RTC0", "PNP0B00", 0x70, 2, 8), ("PWR0", "PNP0C0C", 0x600, 3, 9), ("COM1", "PNP0501", 0x3f8, 8, 4)]
    {
        let irq = aml::Interrupt::new(true, true, false, false, irq);
        dsdt.append_slice(&named(name, hid, vec![&aml::IO::new(port, port, 1, len), &irq]));
    }
    for (n, name) in (0..).zip(["V000", "V001", "V002"]) {
        let irq = aml::Interrupt::new(true, true, false, false, 5 + n);
        let memory = aml::Memory32Fixed::new(true, 0xd000_0000 + 0x1000 * n, 0x1000);
        dsdt.append_slice(&named(name, "LNRO0005", vec![&memory, &irq]));
    }
    let mut out = vec![0; Rsdp::len()];
    let mut add = |bytes: &[u8]| {
        let at = BASE + out.len() as u64;
        out.extend_from_slice(bytes);
        at
    };
    let dsdt = add(dsdt.as_slice());
    let mut fadt = Vec::new();
    let builder = FADTBuilder::new(oem, table, 1).dsdt_64(dsdt).flag(Flags::HwReducedAcpi);
    builder.finalize().to_aml_bytes(&mut fadt);
    let fadt = add(&fadt);
    let mut madt = Sdt::new(*b"APIC", 36, 5, oem, table, 1);
    madt.append(0xfee0_0000u32);
    madt.append(0u32);
    let mut entries = Vec::new();
    for id in [0, 1] {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut entries);
    }
    IoApic::new(0, 0xfec0_0000, 0).to_aml_bytes(&mut entries);
    madt.append_slice(&entries);
    let madt = add(madt.as_slice());
    let mut xsdt = Sdt::new(*b"XSDT", 36, 1, oem, table, 1);
    xsdt.append(fadt);
    xsdt.append(madt);
    let xsdt = add(xsdt.as_slice());
    let mut rsdp = Vec::new();
    Rsdp::new(oem, xsdt).to_aml_bytes(&mut rsdp);
    out[..rsdp.len()].copy_from_slice(&rsdp);
    out
}

/// The memory map of 512 MiB in linux-loader's zero page.
pub fn e820() -> boot_params {
    let mut zero_page = boot_params::default();
    let entries = [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (0x10_0000, (512 << 20) - 0x10_0000, 1)];
    for (place, (addr, size, kind)) in zero_page.e820_table.iter_mut().zip(entries) {
        *place = boot_e820_entry { addr, size, r#type: kind };
    }
    zero_page.e820_entries = entries.len() as u8;
    zero_page
}
