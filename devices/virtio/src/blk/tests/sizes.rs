//! Disks that grow and shrink under a driver.

use super::*;
use crate::testing::TestDriver;

#[test]
fn a_driver_is_told_the_new_size_and_can_use_it_at_once() {
    let mut blk = blk(MemDisk::new(16));
    let handle = blk.handle();
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let irqs = |rig: &Rig| rig.config_irqs.load(Ordering::Relaxed);
    let data = rig.put(&[1; 512]);
    assert_eq!(request(&mut rig, &header(OUT, 16), &[data], &[]).0, IOERR);
    handle.resize(32 * 512).unwrap();
    assert_eq!((irqs(&rig), handle.capacity(), &config(&blk)[..8]), (1, 32 * 512, &32u64.to_le_bytes()[..]));
    assert_eq!(request(&mut rig, &header(OUT, 31), &[data], &[]).0, OK);
    handle.resize(8 * 512).unwrap();
    assert_eq!((irqs(&rig), &config(&blk)[..8]), (2, &8u64.to_le_bytes()[..]));
    assert_eq!(request(&mut rig, &header(OUT, 8), &[data], &[]).0, IOERR);
    // Nothing new.
    handle.resize(8 * 512).unwrap();
    assert_eq!(irqs(&rig), 2);
}

#[test]
fn a_size_that_the_disk_cannot_have_changes_nothing() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(8192).unwrap();
    let mut blk = Blk::new(RawFile::open(image.path(), OpenMode::ReadWrite).unwrap(), DiskId::default());
    let handle = blk.handle();
    let rig = Rig::new(&mut blk, FLUSH_BIT);
    for wrong in [0, 1000, u64::MAX] {
        assert!(handle.resize(wrong).is_err(), "{wrong}");
    }
    assert_eq!((handle.capacity(), rig.config_irqs.load(Ordering::Relaxed)), (8192, 0));
    assert_eq!(image.as_file().metadata().unwrap().len(), 8192);
}

#[test]
fn the_registers_show_the_new_size_and_an_interrupt() {
    let blk = blk(MemDisk::new(16));
    let handle = blk.handle();
    let mut driver = TestDriver::new(blk);
    driver.start(u128::MAX);
    driver.interrupts();
    assert_eq!(driver.config::<8>(0), 16u64.to_le_bytes());
    handle.resize(20 * 512).unwrap();
    assert_eq!(driver.config::<8>(0), 20u64.to_le_bytes());
    assert!(driver.interrupts() > 0);
    // Without a driver nobody is told, and the next one sees it.
    driver.reset();
    driver.interrupts();
    handle.resize(24 * 512).unwrap();
    assert_eq!(driver.interrupts(), 0);
    driver.start(u128::MAX);
    assert_eq!(driver.config::<8>(0), 24u64.to_le_bytes());
}
