use super::*;

#[test]
fn bits_are_set_and_cleared_in_one_step() {
    let page = RegisterPage::new().unwrap();
    std::thread::scope(|scope| {
        for bit in 0..8 {
            let page = &page;
            scope.spawn(move || {
                for _ in 0..1000 {
                    assert_eq!(page.fetch_or(0x60, 1 << bit) & 1 << bit, 0);
                    assert_ne!(page.fetch_and(0x60, !(1 << bit)) & 1 << bit, 0);
                }
                page.fetch_or(0x60, 1 << bit);
            });
        }
    });
    assert_eq!(page.load(0x60), 0xff);
    assert_eq!(page.load(0x64), 0);
}

#[test]
fn offsets_that_are_no_registers_change_nothing() {
    let page = RegisterPage::new().unwrap();
    for offset in [1, 2, 0xffd, REGISTER_PAGE_SIZE, usize::MAX & !3] {
        assert_eq!(page.fetch_or(offset, 1), u32::MAX);
        assert_eq!(page.fetch_and(offset, 0), u32::MAX);
        page.store(offset, 1);
        assert_eq!(page.load(offset), u32::MAX);
    }
    assert!((0..REGISTER_PAGE_SIZE).step_by(4).all(|offset| page.load(offset) == 0));
}

#[test]
fn it_is_a_page_of_the_host() {
    assert!(host_page_size() >= REGISTER_PAGE_SIZE);
    assert_eq!(RegisterPage::new().unwrap().host_address() % host_page_size() as u64, 0);
}

#[test]
fn several_pages_share_a_mapping_and_no_byte() {
    let mut pages = RegisterPage::several(3).unwrap();
    for (index, page) in pages.iter().enumerate() {
        for offset in (0..REGISTER_PAGE_SIZE).step_by(4) {
            assert_eq!(page.fetch_or(offset, 1 << index), 0, "page {index}, {offset:#x}");
        }
    }
    let addresses: Vec<u64> = pages.iter().map(RegisterPage::host_address).collect();
    assert!(addresses.windows(2).all(|pair| pair[1] - pair[0] == host_page_size() as u64), "{addresses:x?}");
    // Each outlives the others.
    let middle = pages.swap_remove(1);
    drop(pages);
    assert_eq!(middle.load(0), 2);
    assert!(RegisterPage::several(0).unwrap().is_empty());
    assert!(RegisterPage::several(usize::MAX).is_err());
}
