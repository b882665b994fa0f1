//! The arithmetic of a month.

use super::CostSection;

/// Hours of a month: 24 * 365 / 12.
pub(super) const HOURS_PER_MONTH: f64 = 730.0;
/// Seconds of a month.
const SECONDS_PER_MONTH: f64 = HOURS_PER_MONTH * 3600.0;
const JOULES_PER_KWH: f64 = 3.6e6;

/// What a machine costs in a month.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalCost {
    /// Whatever it does.
    pub fixed_per_month: f64,
    /// For each item more: the power that it takes.
    pub per_item: f64,
    /// Items that it can do in a month, where their time was measured.
    pub capacity_per_month: Option<f64>,
}

impl CostSection {
    /// What the machine costs that a local candidate runs on. `None` where the section has no price of one.
    ///
    /// Bought: price / months + kWh price * 0.73 * (idle (1 - u) + busy u) + care + training / months. Rented: 730 * rent + care +
    /// training / months. With `utilisation` the power is that of this share u. Without it u is what the items take, and then each
    /// item costs kWh price * (busy - idle) * its seconds / 3.6e6.
    pub fn local(&self, seconds_per_item: Option<f64>, is_trained: bool) -> Option<LocalCost> {
        let measured = seconds_per_item.filter(|seconds| seconds.is_finite() && *seconds > 0.0);
        let (machine, per_item) = match (self.rent_per_hour, self.hardware_price) {
            (Some(rent), _) => (rent * HOURS_PER_MONTH, 0.0),
            (None, Some(price)) => {
                let (idle, more) = (self.idle_watts, self.busy_watts - self.idle_watts);
                let watts = idle + self.utilisation.unwrap_or(0.0) * more;
                let power = self.power_price_per_kwh * HOURS_PER_MONTH / 1000.0 * watts;
                let per_item = match self.utilisation {
                    Some(_) => 0.0,
                    None => self.power_price_per_kwh * more * measured.unwrap_or(0.0) / JOULES_PER_KWH,
                };
                (price / self.months + power, per_item)
            }
            (None, None) => return None,
        };
        let care = self.care_hours_per_month * self.care_rate;
        let training = if is_trained { self.training_cost / self.months } else { 0.0 };
        let capacity = measured.map(|seconds| self.utilisation.unwrap_or(1.0) * SECONDS_PER_MONTH / seconds);
        Some(LocalCost { fixed_per_month: machine + care + training, per_item, capacity_per_month: capacity })
    }
}

impl LocalCost {
    /// The bill of a month with so many items.
    pub fn per_month(&self, items: f64) -> f64 {
        self.fixed_per_month + self.per_item * items
    }

    /// Whether it can do so many items in a month; unknown where their time was not measured.
    pub fn can_do(&self, items: f64) -> Option<bool> {
        self.capacity_per_month.map(|capacity| capacity >= items)
    }
}

/// The least number of items a month at which the machine is no dearer than an API that takes `price_per_item`. `None` where there is
/// none, or where the machine cannot do so many.
pub fn break_even(local: &LocalCost, price_per_item: f64) -> Option<u64> {
    let saved = price_per_item - local.per_item;
    if saved <= 0.0 {
        return None;
    }
    let items = (local.fixed_per_month / saved).ceil();
    let is_possible = items < 1e18 && local.can_do(items).unwrap_or(true);
    is_possible.then_some(items as u64)
}

#[cfg(test)]
mod tests {
    use super::super::{Price, Tokens};
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-9 * b.abs().max(1.0), "{a} is not {b}");
    }

    fn section(text: &str) -> CostSection {
        let section: CostSection = toml::from_str(text).unwrap();
        assert!(section.check().is_empty(), "{}", section.check());
        section
    }

    /// The worked example that the published calculators' formula is held against: an item is a million tokens, three quarters of them
    /// of the prompt; the API's prices are 0.15 and 0.60, 0.80 and 4, 2.50 and 10.
    #[test]
    fn the_worked_example_is_reproduced() {
        let million = Tokens { input: 750_000, output: 250_000, ..Tokens::default() };
        let prices = [(0.15, 0.60), (0.80, 4.0), (2.5, 10.0)].map(|(input, output)| {
            Price { input, output, input_cache_read: None, input_cache_write: None }.of(million)
        });
        near(prices[0], 0.2625);
        near(prices[2], 4.375);
        let own =
            "hardware_price = 2500.0\npower_price_per_kwh = 0.25\nidle_watts = 60.0\nbusy_watts = 350.0";
        let care = "utilisation = 0.05\ncare_hours_per_month = 4.0\ncare_rate = 60.0";
        let with_care = section(&format!("{own}\n{care}"));
        let without = section(&format!("{own}\nutilisation = 0.1"));
        let cheap = section("rent_per_hour = 0.35");
        let dear = section("rent_per_hour = 1.89");
        for (section, expected) in [
            (with_care, [1231.0, 202.0, 74.0]),
            (without, [326.0, 54.0, 20.0]),
            (cheap, [973.0, 160.0, 58.0]),
            (dear, [5256.0, 862.0, 315.0]),
        ] {
            let local = section.local(None, true).unwrap();
            for (price, expected) in prices.iter().zip(expected) {
                let millions = local.fixed_per_month / price;
                assert_eq!(millions.round(), expected, "{millions}");
                assert_eq!(break_even(&local, *price), Some(millions.ceil() as u64));
            }
        }
    }

    #[test]
    fn a_month_of_a_bought_machine_by_hand() {
        let section = section(
            "hardware_price = 3600.0\npower_price_per_kwh = 0.5\nidle_watts = 100.0\nbusy_watts = 300.0\ntraining_cost = 72.0
             care_hours_per_month = 2.0\ncare_rate = 50.0",
        );
        let local = section.local(Some(9.0), true).unwrap();
        // 100 for the machine, 0.5 * 0.73 * 100 = 36.5 idle, 100 of care, 2 of training; 0.5 * 200 W * 9 s = 0.0005 kWh each.
        near(local.fixed_per_month, 238.5);
        near(local.per_item, 0.000_25);
        near(local.capacity_per_month.unwrap(), 292_000.0);
        near(local.per_month(292_000.0), 238.5 + 73.0);
        assert_eq!((local.can_do(292_000.0), local.can_do(292_001.0)), (Some(true), Some(false)));
        near(section.local(Some(9.0), false).unwrap().fixed_per_month, 236.5);
        // Working all the time is the same by either way of saying it.
        let busy = CostSection { utilisation: Some(1.0), ..section.clone() }.local(Some(9.0), true).unwrap();
        near(busy.per_month(292_000.0), local.per_month(292_000.0));
        let half = CostSection { utilisation: Some(0.5), ..section.clone() }.local(Some(9.0), true).unwrap();
        assert_eq!((half.can_do(146_000.0), half.can_do(146_001.0)), (Some(true), Some(false)));
        assert_eq!(section.local(None, true).unwrap().can_do(1.0), None);
        assert_eq!(CostSection::default().local(Some(1.0), true), None);
    }

    #[test]
    fn a_machine_that_saves_nothing_never_breaks_even() {
        let local = LocalCost { fixed_per_month: 100.0, per_item: 0.25, capacity_per_month: Some(400.0) };
        assert_eq!(break_even(&local, 0.5), Some(400));
        assert_eq!(break_even(&local, 0.49), None);
        for price in [0.25, 0.0, 0.125] {
            assert_eq!(break_even(&local, price), None);
        }
        // 100 / 0.24 = 416.7
        assert_eq!(break_even(&LocalCost { capacity_per_month: None, ..local }, 0.49), Some(417));
    }
}
