use proptest::prelude::*;

use super::*;

fn date(year: i64, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> DateTime {
    DateTime { year, month, day, hour, minute, second }
}

#[test]
fn known_dates() {
    // `date -u -d @N`
    for (seconds, expected, weekday) in [
        (0, date(1970, 1, 1, 0, 0, 0), 4),
        (951_782_399, date(2000, 2, 28, 23, 59, 59), 1),
        (951_782_400, date(2000, 2, 29, 0, 0, 0), 2),
        (1_709_210_096, date(2024, 2, 29, 12, 34, 56), 4),
        (4_107_542_400, date(2100, 3, 1, 0, 0, 0), 1),
        (-1, date(1969, 12, 31, 23, 59, 59), 3),
        (253_402_300_799, date(9999, 12, 31, 23, 59, 59), 5),
    ] {
        assert_eq!(DateTime::from_unix(seconds), expected);
        assert_eq!(expected.to_unix(), seconds);
        assert_eq!(expected.weekday(), weekday, "{expected:?}");
    }
}

#[test]
fn fields_out_of_range_carry_over() {
    assert_eq!(date(2023, 13, 1, 0, 0, 0).to_unix(), date(2024, 1, 1, 0, 0, 0).to_unix());
    assert_eq!(date(2024, 0, 31, 24, 60, 60).to_unix(), date(2024, 1, 1, 1, 1, 0).to_unix());
    assert_eq!(date(2023, 2, 29, 0, 0, 0).to_unix(), date(2023, 3, 1, 0, 0, 0).to_unix());
}

proptest! {
    #[test]
    fn there_and_back(seconds in -LIMIT..LIMIT) {
        prop_assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
    }

    #[test]
    fn any_number_of_seconds_is_a_date(seconds in any::<i64>()) {
        let date = DateTime::from_unix(seconds);
        prop_assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day));
        prop_assert!(date.hour < 24 && date.minute < 60 && date.second < 60);
    }
}
