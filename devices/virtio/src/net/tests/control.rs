//! Commands of the driver, and what the VMM tells it.

use super::*;
use crate::testing::TestDriver;

const CTRL_GUEST_OFFLOADS: u128 = 1 << 2;
const STATUS: u128 = 1 << 16;
const CTRL_VQ: u128 = 1 << 17;
const CTRL_RX: u128 = 1 << 18;
const CTRL_VLAN: u128 = 1 << 19;
const CTRL_RX_EXTRA: u128 = 1 << 20;
const GUEST_ANNOUNCE: u128 = 1 << 21;
const MQ: u128 = 1 << 22;
const CTRL_MAC_ADDR: u128 = 1 << 23;
const ALL: u128 = !(1 << 29);

const OK: u8 = 0;
const ERR: u8 = 1;

/// The answer to a command.
#[track_caller]
fn command(rig: &mut Rig, class: u8, command: u8, data: &[u8]) -> u8 {
    let header = rig.put(&[class, command]);
    let answer = rig.put(&[0xcc]);
    let data = (!data.is_empty()).then(|| rig.put(data));
    let readable: Vec<_> = [header].into_iter().chain(data).collect();
    rig.offer(CONTROL.into(), &readable, &[answer]);
    assert_eq!(rig.run(CONTROL), 1);
    assert_eq!(rig.used(CONTROL.into()).map(|used| used.len), Some(1));
    rig.get(answer)[0]
}

fn table(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let list = |list: &[[u8; 6]]| [&(list.len() as u32).to_le_bytes()[..], list.as_flattened()].concat();
    [list(unicast), list(multicast)].concat()
}

const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Sends packets to these addresses to the guest; which of them arrive.
fn arrive<const N: usize>(rig: &mut Rig, other: &UnixDatagram, to: [[u8; 6]; N]) -> [bool; N] {
    to.map(|to| {
        let mut heads = VecDeque::new();
        let mut sent = packet(100);
        sent[12..18].copy_from_slice(&to);
        if rig.rings[RXQ].avail_index() == rig.rings[RXQ].used_index() {
            post(rig, &mut heads, &[1000]);
        }
        other.send(&sent).unwrap();
        rig.run(HOST);
        rig.used(RXQ).is_some()
    })
}

#[test]
fn packets_are_filtered_as_the_driver_says() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | MRG_RXBUF);
    let own = mac().bytes();
    let all = [own, OTHER, GROUP, [0xff; 6]];
    assert_eq!(arrive(&mut rig, &other, all), [true; 4], "before the driver says anything");
    assert_eq!(command(&mut rig, 0, 0, &[0]), OK);
    assert_eq!(arrive(&mut rig, &other, all), [true, false, false, true]);
    assert_eq!(counter(&net, "rx_filtered_packets"), 2);
    assert_eq!(command(&mut rig, 1, 0, &table(&[OTHER], &[GROUP])), OK);
    assert_eq!(arrive(&mut rig, &other, all), [true; 4]);
    assert_eq!(command(&mut rig, 1, 0, &table(&[], &[])), OK);
    assert_eq!(command(&mut rig, 0, 1, &[1]), OK);
    assert_eq!(arrive(&mut rig, &other, all), [true, false, true, true]);
    assert_eq!(command(&mut rig, 0, 5, &[1]), OK);
    assert_eq!(arrive(&mut rig, &other, all), [true, false, true, false]);
    assert_eq!(command(&mut rig, 0, 0, &[1]), OK);
    assert_eq!(arrive(&mut rig, &other, all), [true; 4]);
    assert_eq!(counter(&net, "rx_dropped_packets"), 0);
}

#[test]
fn more_addresses_than_fit_are_all_taken() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, CTRL_VQ | CTRL_RX | MRG_RXBUF);
    command(&mut rig, 0, 0, &[0]);
    let many: Vec<_> = (0..65).map(|i| [2, 1, 0, 0, 0, i]).collect();
    assert_eq!(command(&mut rig, 1, 0, &table(&many[..64], &[])), OK);
    let probe = [many[63], many[64], OTHER, GROUP];
    assert_eq!(arrive(&mut rig, &other, probe), [true, false, false, false]);
    assert_eq!(command(&mut rig, 1, 0, &table(&many, &many)), OK);
    assert_eq!(arrive(&mut rig, &other, probe), [true; 4]);
}

#[test]
fn the_guest_changes_its_address() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, CTRL_VQ | CTRL_RX | CTRL_MAC_ADDR | MRG_RXBUF);
    command(&mut rig, 0, 0, &[0]);
    assert_eq!(command(&mut rig, 1, 1, &OTHER), OK);
    assert_eq!(config(&net)[..6], OTHER);
    assert_eq!(rig.config_irqs.load(Ordering::Relaxed), 1, "configuration space is read anew");
    assert_eq!(arrive(&mut rig, &other, [mac().bytes(), OTHER]), [false, true]);
    for bad in [&[0; 6][..], &GROUP, &OTHER[..5], &[2; 7], &[]] {
        assert_eq!(command(&mut rig, 1, 1, bad), ERR, "{bad:?}");
    }
    assert_eq!(config(&net)[..6], OTHER);
    net.reset();
    assert_eq!(config(&net)[..6], mac().bytes());
}

#[test]
fn vlans_come_and_go() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, CTRL_VQ | CTRL_RX | CTRL_VLAN | MRG_RXBUF);
    command(&mut rig, 0, 0, &[0]);
    let arrives = |rig: &mut Rig| {
        let mut heads = VecDeque::new();
        post(rig, &mut heads, &[1000]);
        let mut sent = packet(100);
        sent[12..18].copy_from_slice(&mac().bytes());
        sent[24..28].copy_from_slice(&[0x81, 0, 0x20, 7]);
        other.send(&sent).unwrap();
        rig.run(HOST);
        rig.used(RXQ).is_some()
    };
    assert!(!arrives(&mut rig));
    assert_eq!(command(&mut rig, 2, 0, &[7, 0]), OK);
    assert!(arrives(&mut rig));
    assert_eq!(command(&mut rig, 2, 1, &[7, 0]), OK);
    assert!(!arrives(&mut rig));
    assert_eq!(command(&mut rig, 2, 0, &[0, 0x10]), ERR, "4096 is no VLAN");
}

#[test]
fn the_guests_offloads_change_while_it_runs() {
    let (mut net, _other) = card();
    let mut rig = Rig::new(&mut net, CTRL_VQ | CTRL_GUEST_OFFLOADS | GUEST_CSUM | GUEST_TSO4);
    let set = |bits: u64| bits.to_le_bytes();
    assert_eq!(command(&mut rig, 5, 0, &set(1 << 1)), OK);
    let checksum = Offloads { checksum: true, ..Offloads::none() };
    let of = |net: &Net<Cable>| *net.pairs[0].io.offloads.lock().unwrap().last().unwrap();
    assert_eq!(of(&net), checksum);
    // Not negotiated, and no offload at all.
    for bits in [1 << 8, 1 << 16, u64::MAX] {
        assert_eq!(command(&mut rig, 5, 0, &set(bits)), ERR, "{bits:#x}");
    }
    net.fail_next(&[libc::EIO]);
    assert_eq!(command(&mut rig, 5, 0, &set(0)), ERR);
    assert_eq!((of(&net), counter(&net, "host_errors")), (checksum, 1));
    // They stay over a pause.
    let queues = rig.stop();
    rig.start_with(&mut net, queues);
    assert_eq!(of(&net), checksum);
}

#[test]
fn commands_that_were_not_negotiated_are_refused() {
    let every: [(u8, u8, &[u8]); 10] = [
        (0, 0, &[0]),
        (0, 2, &[0]),
        (1, 0, &[0; 8]),
        (1, 1, &OTHER),
        (2, 0, &[7, 0]),
        (2, 1, &[7, 0]),
        (3, 0, &[]),
        (4, 0, &[1, 0]),
        (5, 0, &[0; 8]),
        (0, 5, &[0]),
    ];
    for (features, answer) in [(CTRL_VQ, ERR), (ALL, OK)] {
        let (mut net, _other) = card();
        let mut rig = Rig::new(&mut net, features);
        for (class, number, data) in every {
            assert_eq!(command(&mut rig, class, number, data), answer, "{class} {number}");
        }
    }
    let (mut net, _other) = card();
    let mut rig = Rig::new(&mut net, CTRL_VQ | CTRL_RX);
    assert_eq!([0, 1, 2, 3, 4, 5].map(|mode| command(&mut rig, 0, mode, &[0])), [OK, OK, ERR, ERR, ERR, ERR]);
}

#[test]
fn b12_hostile_commands_are_answered_and_change_nothing() {
    let (mut net, _other) = card();
    let mut rig = Rig::new(&mut net, ALL);
    let before = net.card.settings().clone();
    for class in 0..=255 {
        for number in [0, 1, 2, 5, 6, 7, 8, 255] {
            // Too long for each that there is.
            assert_eq!(command(&mut rig, class, number, &[0xff; 77]), ERR, "{class} {number}");
        }
    }
    for (class, number, len) in [(0, 0, 1), (1, 0, 8), (1, 1, 6), (2, 0, 2), (4, 0, 2), (5, 0, 8)] {
        for len in (0..len).chain([len + 1]) {
            // With bytes that make a wrong table, too.
            assert_eq!(command(&mut rig, class, number, &vec![0; len]), ERR, "{class} {number} {len}");
        }
    }
    for count in [1u32, 2, 0x2aaa_aaab, 1 << 31, u32::MAX] {
        let mut data = [&count.to_le_bytes()[..], &[2; 6], &[0; 3]].concat();
        assert_eq!(command(&mut rig, 1, 0, &data), ERR, "{count} addresses");
        data.splice(0..0, [0; 4]);
        assert_eq!(command(&mut rig, 1, 0, &data), ERR, "{count} addresses");
    }
    for pairs in [0u16, 2, 0x8000, u16::MAX] {
        assert_eq!(command(&mut rig, 4, 0, &pairs.to_le_bytes()), ERR);
    }
    // Without room for an answer, or without a command.
    let (header, promisc) = (rig.put(&[0, 0]), rig.put(&[0]));
    rig.offer(CONTROL.into(), &[header, promisc], &[]);
    let answer = rig.put(&[0xcc; 4]);
    rig.offer(CONTROL.into(), &[], &[answer]);
    let short = rig.put(&[0]);
    rig.offer(CONTROL.into(), &[short], &[answer]);
    rig.run(CONTROL);
    assert_eq!([0, 1, 2].map(|_| rig.used(CONTROL.into()).unwrap().len), [0, 1, 1]);
    assert_eq!(rig.get(answer), [ERR, 0xcc, 0xcc, 0xcc]);
    assert_eq!(*net.card.settings(), before);
    assert_eq!(counter(&net, "control_commands"), 0);
    // In pieces of a byte it is the same command.
    let pieces: Vec<_> = [0, 0, 0].map(|byte| rig.put(&[byte])).to_vec();
    rig.offer(CONTROL.into(), &pieces, &[answer]);
    rig.run(CONTROL);
    assert_eq!((rig.get(answer)[0], net.card.settings().filter.mode), (OK, 0));
}

#[test]
fn c6_a_turn_takes_a_bounded_number_of_commands() {
    let (mut net, _other) = card();
    let mut rig = Rig::with_rings(&mut net, CTRL_VQ, 64, false);
    let (header, answer) = (rig.put(&[9, 9]), rig.put(&[0]));
    (0..40).for_each(|_| _ = rig.offer(CONTROL.into(), &[header], &[answer]));
    assert_eq!(rig.turn(CONTROL), Ok(Turn::Again));
    assert_eq!(rig.rings[usize::from(CONTROL)].used_index(), 32);
    assert_eq!(rig.turn(CONTROL), Ok(Turn::Sleep));
    assert_eq!(rig.rings[usize::from(CONTROL)].used_index(), 40);
}

#[test]
fn the_vmm_pulls_the_cable_out_and_plugs_it_in() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, STATUS | MRG_RXBUF);
    let mut heads = VecDeque::new();
    post(&mut rig, &mut heads, &[1000]);
    let handle = net.handle();
    for round in 1..3 {
        handle.set_link(false);
        assert_eq!((config(&net)[6], rig.config_irqs.load(Ordering::Relaxed)), (0, 2 * round - 1));
        other.send(&packet(100)).unwrap();
        let sent = rig.put(&frame(0, 0, 60));
        rig.offer(TXQ, &[sent], &[]);
        rig.run(HOST);
        rig.run(TX_KICK);
        assert_eq!((received(&other), rig.used(RXQ)), (None, None));
        assert!(rig.used(TXQ).is_some());
        // The driver comes anew, and the cable is still out.
        net.reset();
        assert_eq!(config(&net)[6], 0);
        let queues = rig.stop();
        rig.start_with(&mut net, queues);
        handle.set_link(true);
        assert_eq!((config(&net)[6], rig.config_irqs.load(Ordering::Relaxed)), (1, 2 * round));
    }
    other.send(&packet(100)).unwrap();
    rig.run(HOST);
    assert_packet(taken(&mut rig, &mut heads), &packet(100), 1);
    assert_eq!((counter(&net, "rx_dropped_packets"), counter(&net, "tx_dropped_packets")), (2, 2));
}

#[test]
fn an_announcement_is_due_until_the_guest_has_made_it() {
    let (mut net, _other) = card();
    let mut rig = Rig::new(&mut net, STATUS | CTRL_VQ | GUEST_ANNOUNCE);
    net.handle().announce();
    assert_eq!((config(&net)[6], rig.config_irqs.load(Ordering::Relaxed)), (3, 1));
    assert_eq!(command(&mut rig, 3, 0, &[]), OK);
    assert_eq!(config(&net)[6], 1);
}

#[test]
fn mtu_and_speed_are_told_where_they_are_known() {
    let (net, _other) = card();
    assert_eq!(net.info().features & (1 << 3 | 1 << 63), 0);
    let net = net.with_mtu("9000".parse().unwrap()).with_speed(10_000);
    assert_eq!(net.info().features & (1 << 3 | 1 << 63), 1 << 3 | 1 << 63);
    assert_eq!(config(&net)[10..], [0x28, 0x23, 0x10, 0x27, 0, 0, 1]);
}

/// A card with so many pairs of queues, and the other ends of their cables.
fn pairs(count: usize) -> (Net<Cable>, Vec<UnixDatagram>) {
    let (cables, others): (Vec<_>, Vec<_>) = (0..count).map(|_| cable()).unzip();
    (Net::with_pairs(cables, mac()).unwrap(), others)
}

#[test]
fn a_card_has_some_pairs_of_queues_and_not_too_many() {
    for count in [0, 65] {
        let cables = (0..count).map(|_| cable().0);
        let error = Net::with_pairs(cables, mac()).unwrap_err();
        assert_eq!(error.to_string(), format!("{count} pairs of queues; a network card has 1 to 64"));
    }
    let (net, _others) = pairs(3);
    assert_eq!(net.info().queues, [256, 256, 256, 256, 256, 256, 64]);
    assert_eq!(net.groups(), [vec![0, 1], vec![2, 3], vec![4, 5], vec![6]]);
    assert_eq!((config(&net)[8], net.info().features & MQ), (3, MQ));
    let (net, _others) = pairs(1);
    assert_eq!(net.info().features & MQ, 0);
}

/// The answer of the control queue with this number.
fn ask(driver: &mut TestDriver, queue: u16, class: u8, number: u8, data: &[u8]) -> u8 {
    driver.transact(queue, &[&[class, number], data], &[1]).1[0]
}

#[test]
fn packets_use_the_pairs_of_queues_that_the_driver_uses() {
    let (net, others) = pairs(3);
    let shared = net.pairs.clone();
    let in_use = move || [0, 1, 2].map(|i| *shared[i].io.active.lock().unwrap().last().unwrap());
    let mut driver = TestDriver::new(net);
    driver.start(u128::MAX);
    driver.pump();
    assert_eq!(in_use(), [true, false, false], "before the driver has said so, it uses one");
    let arrives = |driver: &mut TestDriver, pair: u16| {
        let buffer = driver.request(2 * pair, &[], &[1000]);
        driver.kick(2 * pair);
        others[usize::from(pair)].send(&packet(100)).unwrap();
        driver.pump();
        let used = driver.used(2 * pair);
        assert!(used.as_ref().is_none_or(|used| used.head == u32::from(buffer.head)));
        used.is_some()
    };
    let leaves = |driver: &mut TestDriver, pair: u16| {
        driver.transact(2 * pair + 1, &[&frame(0, 0, 60)], &[]);
        received(&others[usize::from(pair)]).is_some()
    };
    assert!(arrives(&mut driver, 0) && !arrives(&mut driver, 1) && !arrives(&mut driver, 2));
    assert!(leaves(&mut driver, 0) && !leaves(&mut driver, 1));
    assert_eq!(ask(&mut driver, 6, 4, 0, &[3, 0]), OK);
    driver.pump();
    assert_eq!(in_use(), [true; 3]);
    // What came before that arrives now.
    assert!(driver.used(2).is_some() && driver.used(4).is_some());
    for pair in 0..3 {
        assert!(arrives(&mut driver, pair) && leaves(&mut driver, pair), "pair {pair}");
    }
    assert_eq!(ask(&mut driver, 6, 4, 0, &[4, 0]), ERR);
    assert_eq!(ask(&mut driver, 6, 4, 0, &[2, 0]), OK);
    driver.pump();
    assert_eq!(in_use(), [true, true, false]);
    assert!(arrives(&mut driver, 1) && !arrives(&mut driver, 2));
    // The same after the card is restored, and one again after a reset.
    driver.save_and_restore();
    driver.pump();
    assert_eq!(in_use(), [true, true, false]);
    driver.start(u128::MAX);
    driver.pump();
    assert_eq!(in_use(), [true, false, false]);
}

#[test]
fn a_driver_that_knows_one_pair_has_its_control_queue_behind_that() {
    let (net, others) = pairs(2);
    let mut driver = TestDriver::new(net);
    driver.start(CTRL_VQ | CTRL_RX);
    assert_eq!(ask(&mut driver, 2, 0, 0, &[0]), OK);
    assert_eq!(ask(&mut driver, 2, 4, 0, &[2, 0]), ERR);
    driver.transact(1, &[&frame(0, 0, 60)], &[]);
    assert!(received(&others[0]).is_some());
}

#[test]
fn a_host_that_cannot_use_a_queue_says_so_to_the_driver() {
    let (net, _others) = pairs(2);
    let shared = net.pairs.clone();
    let mut driver = TestDriver::new(net);
    driver.start(u128::MAX);
    driver.pump();
    shared[1].io.failures.lock().unwrap().push_back(libc::EIO);
    assert_eq!(ask(&mut driver, 4, 4, 0, &[2, 0]), ERR);
    assert!(!shared[1].io.active.lock().unwrap().last().unwrap());
    assert!(matches!(&driver.reports()[..], [DeviceEvent::HostError { .. }]));
    assert_eq!(ask(&mut driver, 4, 4, 0, &[2, 0]), OK);
}

#[test]
fn what_the_driver_has_set_is_saved() {
    let (net, _other) = card();
    let mut driver = TestDriver::new(net);
    driver.start(u128::MAX);
    for (class, number, data) in [
        (0, 0, &[0][..]),
        (0, 1, &[1]),
        (1, 0, &table(&[OTHER], &[GROUP])),
        (1, 1, &OTHER),
        (2, 0, &[7, 0]),
        (5, 0, &[2, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        assert_eq!(ask(&mut driver, 2, class, number, data), OK);
    }
    let (net, _other) = card();
    let card = net.card.clone();
    assert!(driver.move_to(Box::new(net)));
    let settings = card.settings().clone();
    assert_eq!((settings.mac, settings.offloads), (OTHER, Some(2)));
    assert_eq!((settings.filter.mode, settings.filter.vlans.into_iter().collect::<Vec<_>>()), (2, vec![7]));
    assert_eq!((settings.filter.unicast.known, settings.filter.multicast.known), (vec![OTHER], vec![GROUP]));
    assert_eq!(driver.config(0), OTHER);
}

crate::conformance_tests!(conformance_of_three_pairs, || pairs(3).0);
