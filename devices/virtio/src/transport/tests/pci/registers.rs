//! What a driver finds, and what each register does.

use super::*;

#[test]
fn a_driver_finds_the_device_and_its_structures() {
    let (_, rig) = sample_rig();
    let space = |offset| rig.space(offset, Size::B4);
    assert_eq!((space(0), space(8), space(0x2c)), (0x1043_1af4, 0x0780_0001, 0x1043_1af4));
    assert_eq!(rig.space(0x3d, Size::B1), 0, "no line");
    assert_eq!(capabilities(&rig).len(), 6);
    assert_eq!(space(0x40) >> 16, 3, "four vectors for three queues");
    let place = |kind| {
        let at = capability(&rig, kind).unwrap();
        (space(at + 4) & 0xff, space(at + 8), space(at + 12))
    };
    assert_eq!(place(1), (0, COMMON, 60));
    assert_eq!(place(2), (0, NOTIFY, 12));
    assert_eq!(place(3), (0, ISR, 1));
    assert_eq!(place(4), (0, CONFIG, 6));
    assert_eq!(space(capability(&rig, 2).unwrap() + 16), 4, "the doorbells' distance");
    assert_eq!(rig.space(capability(&rig, 2).unwrap() + 2, Size::B1), 20);
    assert_eq!(rig.space(capability(&rig, 5).unwrap() + 2, Size::B1), 20);
    // Sized as one BAR of 64 bits.
    rig.set_space(0x10, Size::B4, 0xffff_ffff);
    assert_eq!(space(0x10), 0xffff_8004);
    // A device without configuration space has no structure for it.
    let rng = Rig::new(crate::Rng::new());
    assert_eq!(capability(&rng, 4), None);
    assert_eq!(rng.space(8, Size::B4), 0xff00_0001);
}

#[test]
fn it_asks_for_a_bar_doorbells_and_messages() {
    let (_, rig) = sample_rig();
    let requires = rig.device.requires();
    assert_eq!((requires.registers.len(), requires.interrupts.len()), (1, 0));
    let bar = &requires.registers[0];
    assert_eq!((bar.size, bar.align, bar.unplaced), (BAR_LEN, BAR_LEN, true));
    let doorbells: Vec<_> = bar.doorbells.iter().map(|d| (d.offset, d.size, d.value)).collect();
    assert_eq!(doorbells, [0, 4, 8].map(|offset| (NOTIFY + offset, Size::B2, None)));
    assert_eq!(requires.messages[0].count, 4);
    assert_eq!((rig.device.id(), rig.device.syscalls()), ("one", &[Syscall("write")][..]));
}

#[test]
fn common_configuration_reads_as_specified() {
    let (_, rig) = sample_rig();
    assert_eq!((rig.get(18, Size::B2), rig.get(16, Size::B2)), (3, NO_VECTOR));
    let offered = (0..4u64).fold(0u128, |all, window| {
        rig.set(0, Size::B4, window);
        all | u128::from(rig.get(4, Size::B4)) << (32 * window)
    });
    assert_eq!(offered, 1 << 3 | OWN | VERSION_1 | EVENT_IDX | INDIRECT_DESC | RING_RESET);
    for (queue, size) in [(0, 256), (1, 64), (2, 16)] {
        rig.set(SELECT, Size::B2, queue);
        assert_eq!(rig.get(SELECT, Size::B2), queue);
        assert_eq!((rig.get(SIZE, Size::B2), rig.get(30, Size::B2)), (size, queue));
        assert_eq!((rig.get(VECTOR, Size::B2), rig.get(ENABLE, Size::B2)), (NO_VECTOR, 0));
    }
    rig.negotiate(OWN);
    rig.set(8, Size::B4, 3);
    assert_eq!((rig.get(8, Size::B4), rig.get(12, Size::B4)), (3, (OWN >> 96) as u64));
    let ring = rig.set_up(1, 32, 2);
    let addresses = [32, 40, 48].map(|offset| rig.get(offset, Size::B8));
    assert_eq!(addresses, [ring.desc, ring.avail, ring.used]);
    assert_eq!((rig.get(SIZE, Size::B2), rig.get(VECTOR, Size::B2)), (32, 2));
    // An address at once.
    rig.set(SELECT, Size::B2, 2);
    rig.set(40, Size::B8, 0x1_2345_6780);
    assert_eq!((rig.get(40, Size::B4), rig.get(44, Size::B4)), (0x2345_6780, 1));
}

#[test]
fn requests_are_served_with_every_ring_feature() {
    for features in [0, u128::MAX] {
        let (_, rig) = sample_rig();
        rig.enable_msix(4);
        rig.negotiate(features);
        let mut rings = [0, 1, 2].map(|queue| rig.set_up(queue, 16, queue + 1));
        rig.go();
        for (queue, ring) in (0..).zip(&mut rings) {
            rig.request(queue, ring);
            let mut expected = [None; 4];
            expected[queue as usize + 1] = Some(0x41 + queue as u32);
            assert_eq!(rig.all_sent(), expected);
        }
        assert_eq!(rig.board.reports(), []);
    }
}

#[test]
fn the_doorbells_of_the_machine_are_those_of_the_registers() {
    let (_, rig) = sample_rig();
    for queue in 0..3u16 {
        let doorbell = rig.board.doorbell(("kick", queue)).unwrap();
        rig.set(NOTIFY + 4 * u64::from(queue), Size::B2, 0);
        assert_eq!(doorbell.take().unwrap(), 1);
        rig.set(NOTIFY + 4 * u64::from(queue), Size::B4, 7);
        assert_eq!(doorbell.take().unwrap(), 1, "of any width, as the kernel rings it");
    }
}

/// Rows G1 to G3: a driver that is not Linux'.
#[test]
fn g1_g2_g3_a_driver_that_is_not_linux_sees_what_the_specification_says() {
    let (_, rig) = sample_rig();
    rig.set_status(ACKNOWLEDGE | DRIVER);
    assert_eq!(rig.status(), u64::from(ACKNOWLEDGE | DRIVER), "two steps at once");
    rig.negotiate(RING_RESET);
    rig.set_up(0, 16, NO_VECTOR);
    rig.go();
    assert_eq!((rig.status(), rig.get(ISR, Size::B1)), (15, 0), "nothing has happened");
    rig.set(ENABLE, Size::B2, 0);
    assert_eq!(rig.get(ENABLE, Size::B2), 0);
    let mut ring = rig.set_up(0, 16, NO_VECTOR);
    rig.request(0, &mut ring);
    assert_eq!((rig.get(ISR, Size::B1), rig.get(ISR, Size::B1)), (1, 0), "read once");
    rig.set(RESET, Size::B2, 1);
    assert_eq!((rig.get(RESET, Size::B2), rig.get(ENABLE, Size::B2), rig.get(SIZE, Size::B2)), (0, 0, 256));
    let mut ring = rig.set_up(0, 16, NO_VECTOR);
    rig.request(0, &mut ring);
    assert_eq!(rig.board.reports(), []);
}

#[test]
fn a_reset_of_a_queue_and_of_the_device_forget_vectors() {
    let (shared, rig) = sample_rig();
    rig.enable_msix(4);
    rig.negotiate(RING_RESET);
    rig.set(16, Size::B2, 0);
    rig.set_up(0, 16, 1);
    rig.set_up(1, 16, 1);
    rig.go();
    rig.set(SELECT, Size::B2, 0);
    rig.set(RESET, Size::B2, 1);
    assert_eq!(rig.get(VECTOR, Size::B2), NO_VECTOR);
    rig.set(SELECT, Size::B2, 1);
    assert_eq!((rig.get(VECTOR, Size::B2), rig.get(ENABLE, Size::B2)), (1, 1));
    rig.set_status(0);
    assert_eq!((rig.status(), shared.resets.load(Ordering::Relaxed)), (0, 2));
    rig.set(SELECT, Size::B2, 1);
    assert_eq!((rig.get(VECTOR, Size::B2), rig.get(16, Size::B2)), (NO_VECTOR, NO_VECTOR));
    assert_eq!(rig.space(0x42, Size::B2), 1 << 15 | 3, "MSI-X is the function's, not the device's");
}

#[test]
fn a_machine_reset_forgets_the_function_too() {
    let (_, mut rig) = sample_rig();
    rig.enable_msix(4);
    rig.set_space(0x10, Size::B4, 0xe000_0000);
    rig.set_space(0x04, Size::B2, 2);
    assert_eq!(rig.board.registers()[0].base(), Some(0xe000_0000));
    rig.negotiate(0);
    rig.set_up(0, 16, 1);
    rig.go();
    rig.device.quiesce().unwrap();
    rig.device.reset().unwrap();
    rig.device.resume().unwrap();
    assert_eq!((rig.status(), rig.get(VECTOR, Size::B2)), (0, NO_VECTOR));
    assert_eq!((rig.space(0x42, Size::B2), rig.space(0x10, Size::B4)), (3, 4));
    assert_eq!(rig.board.registers()[0].wanted(), None);
}

#[test]
fn configuration_space_is_the_devices() {
    let (shared, rig) = sample_rig();
    rig.negotiate(0);
    rig.set_up(1, 16, NO_VECTOR);
    rig.go();
    shared.value.store(0x0403_0201, Ordering::Relaxed);
    let config = shared.config.lock().unwrap().clone().unwrap();
    let generation = rig.get(21, Size::B1);
    config.raise();
    assert_ne!(rig.get(21, Size::B1), generation);
    assert_eq!((rig.get(CONFIG, Size::B4), rig.get(CONFIG + 4, Size::B2)), (0x0403_0201, 0xeeee));
    rig.set(CONFIG + 1, Size::B1, 0x77);
    assert_eq!(rig.get(CONFIG, Size::B2), 0x7701);
}

#[test]
fn a_device_that_does_not_fit_is_refused_by_name() {
    let refused = |sample: Sample| {
        let bus = PciBus::new();
        let mut device = VirtioPci::new("odd", Box::new(sample), Arc::new(DedicatedThread), &bus);
        TestBoard::default().attach(&mut device).unwrap_err().to_string()
    };
    let plain = || Sample::new(&Arc::default());
    let many = || Sample { queues: vec![16; 1024], groups: vec![(0..1024).collect()], ..plain() };
    assert!(refused(many()).contains("odd: 1024 queues, there is room for 1023"));
    assert!(refused(Sample { config_len: 0xf01, ..plain() }).contains("3841 bytes"));
    assert!(refused(Sample { queues: vec![256, 64, 24], ..plain() }).contains("a queue of 24"));
    let most = Sample { queues: vec![16; 1023], groups: vec![(0..1023).collect()], ..plain() };
    let rig = Rig::new(Sample { config_len: 0xf00, ..most });
    assert_eq!(rig.get(18, Size::B2), 1023);
}

#[test]
fn it_can_be_taken_out_and_put_in_again() {
    let (_, mut rig) = sample_rig();
    rig.negotiate(0);
    rig.set_up(0, 16, 1);
    rig.go();
    let old = rig.port();
    rig.device.quiesce().unwrap();
    rig.device.detach().unwrap();
    assert!(rig.device.resume().is_err());
    // What a vCPU may still do to the old registers.
    for offset in (0..0x200).step_by(4) {
        let _ = old.write(Access { offset, size: Size::B4 }, 0xffff_ffff);
    }
    let _ = old.write(Access { offset: STATUS, size: Size::B1 }, 0);
    rig.host.reset().unwrap();
    rig.board = TestBoard::with_ram(rig.dma.clone());
    rig.board.attach(&mut rig.device).unwrap();
    rig.device.resume().unwrap();
    assert_eq!((rig.device.slot(), rig.status()), (Some(1), 0));
    rig.negotiate(0);
    let mut ring = rig.set_up(0, 16, NO_VECTOR);
    rig.go();
    rig.request(0, &mut ring);
}
