use ossature_bus::Device;
use ossature_bus::Identity;
use ossature_legacy::{FwCfg, GenerationId, VmGenId};

use super::claims::Claims;
use super::*;
use crate::machine::control::Shared;

fn device(id: u8) -> Box<dyn Device> {
    Box::new(VmGenId::new("generation", GenerationId([id; 16])))
}

#[test]
fn what_a_machine_has_is_free_when_it_is_gone() {
    let parents = Identity::new(Identity::GENERATION, GenerationId([1; 16]).to_string());
    let mut claims = Claims::default();
    claims.of_parent(vec![parents]);
    let machines = [(); 2].map(|()| Arc::new(Shared::new()));
    let error = claims.claim(0, &[device(1)], &machines[0]).unwrap_err();
    let expected = r#"child 0: device "generation": its generation ID 01010101-0101-0101-0101-010101010101 is the parent's too"#;
    assert_eq!(error.to_string(), expected);
    // Its own, twice.
    claims.claim(0, &[device(2), device(2)], &machines[0]).unwrap();
    let taken = claims.claim(1, &[device(2)], &machines[1]);
    assert!(matches!(taken, Err(ForkError::SameIdentity { holder: Holder::Child(0), .. })));
    // Handles may outlive their machine.
    machines[0].release();
    claims.claim(1, &[device(2)], &machines[1]).unwrap();
    let [_, second] = machines;
    drop(second);
    let third = Arc::new(Shared::new());
    claims.claim(2, &[device(2)], &third).unwrap();
    let file: Box<dyn Device> = Box::new(FwCfg::new("fw-cfg"));
    assert!(matches!(claims.claim(3, &[file], &third), Err(ForkError::NoGeneration { child: 3 })));
}

#[test]
fn claims_of_machines_that_are_gone_do_not_pile_up() {
    let mut claims = Claims::default();
    for id in 0..=255 {
        for round in 0..16 {
            let mut bytes = [round; 16];
            bytes[0] = id;
            let device = Box::new(VmGenId::new("generation", GenerationId(bytes)));
            claims.claim(0, &[device as Box<dyn Device>], &Arc::new(Shared::new())).unwrap();
        }
        assert!(claims.len() <= 65, "{}", claims.len());
    }
}
