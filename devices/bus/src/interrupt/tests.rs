use super::*;

#[test]
fn an_edge_has_its_event_and_ignores_deasserting() {
    let event = Arc::new(Event::new().unwrap());
    let interrupt = Interrupt::from(event.clone());
    interrupt.assert().unwrap();
    interrupt.clone().signal().unwrap();
    interrupt.deassert().unwrap();
    assert_eq!(event.take().unwrap(), 2);
    assert!(Arc::ptr_eq(interrupt.event().unwrap(), &event));
    assert!(interrupt.resample().is_none());
}
