//! Dates of the proleptic Gregorian calendar, and seconds since 1970.

const SECONDS_A_DAY: i64 = 86_400;
/// Days of 400 years, after which the calendar repeats.
const DAYS_AN_ERA: i64 = 146_097;
/// Days from 1 March of the year 0 to 1 January 1970.
const DAYS_TO_1970: i64 = 719_468;
/// Seconds whose dates fit a clock of four digits, with room to spare.
const LIMIT: i64 = SECONDS_A_DAY * 366 * 100_000;

/// A date and time of day, UTC. Fields may be out of their range, as a guest may write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl DateTime {
    /// The date and time `seconds` after the start of 1970. Beyond a hundred thousand years it does not change.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let seconds = seconds.clamp(-LIMIT, LIMIT);
        let of_day = seconds.rem_euclid(SECONDS_A_DAY);
        // Years begin in March here, so that the leap day is a year's last.
        let days = seconds.div_euclid(SECONDS_A_DAY) + DAYS_TO_1970;
        let era = days.div_euclid(DAYS_AN_ERA);
        let day_of_era = days.rem_euclid(DAYS_AN_ERA);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // March is 0. Five months in a row have 153 days.
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: day as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// Seconds since 1970. A field out of its range carries over into the next.
    pub(super) fn to_unix(self) -> i64 {
        let days = self.days();
        let of_day = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        days * SECONDS_A_DAY + of_day
    }

    fn days(self) -> i64 {
        let months = self.year * 12 + i64::from(self.month) - 3;
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12));
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let day_of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        era * DAYS_AN_ERA + day_of_era - DAYS_TO_1970
    }

    /// Day of the week, Sunday is 0.
    pub(super) fn weekday(self) -> u8 {
        // The first day of 1970 was a Thursday.
        (self.days() + 4).rem_euclid(7) as u8
    }
}

#[cfg(test)]
mod tests;
