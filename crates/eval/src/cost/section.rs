//! The `[cost]` section of a recipe.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use taper_diagnostics::{Location, Problem, Problems};

/// What it costs to run the candidates. All money is in `currency`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CostSection {
    /// A TOML file with the prices of remote models, relative to the recipe. It has `date = "2026-05-01"` and for each model a table
    /// `[models."its name"]` with `input` and `output`, and `input_cache_read` and `input_cache_write` where they differ from `input`: money
    /// per million tokens.
    pub prices: Option<PathBuf>,
    /// The name of the currency, such as "USD".
    pub currency: String,
    /// Price of the machine that the local candidates run on. Left out with `rent_per_hour`, local candidates have no price.
    pub hardware_price: Option<f64>,
    /// Months over which the machine and the training are paid off.
    pub months: f64,
    /// Rent of such a machine per hour, power included; it is rented all month. Instead of `hardware_price`.
    pub rent_per_hour: Option<f64>,
    /// Price of a kilowatt-hour.
    pub power_price_per_kwh: f64,
    /// Watts that the machine takes when it has nothing to do.
    pub idle_watts: f64,
    /// Watts that the machine takes when it works.
    pub busy_watts: f64,
    /// Share of the time that the machine works (above 0, up to 1): for its power, and for the items that it can do in a month. Left
    /// out, it works as long as the items of the month take, by the measured time, and could work all the time.
    pub utilisation: Option<f64>,
    /// Hours a month that somebody looks after the machine and the model. This decides more than power does.
    pub care_hours_per_month: f64,
    /// What such an hour costs.
    pub care_rate: f64,
    /// Items a month to decide for. Left out, only the break-even is told.
    pub items_per_month: Option<f64>,
    /// What training cost, data and evaluations included; only trained candidates pay for it, over `months`.
    pub training_cost: f64,
}

impl Default for CostSection {
    fn default() -> Self {
        Self {
            prices: None,
            currency: "USD".into(),
            hardware_price: None,
            months: 36.0,
            rent_per_hour: None,
            power_price_per_kwh: 0.0,
            idle_watts: 0.0,
            busy_watts: 0.0,
            utilisation: None,
            care_hours_per_month: 0.0,
            care_rate: 0.0,
            items_per_month: None,
            training_cost: 0.0,
        }
    }
}

impl CostSection {
    /// Everything about the section that can be known without opening a file.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let mut require = |holds: bool, key: &str, message: String| {
            if !holds {
                problems.push(Problem::error("out-of-range", message).at(Location::default().with_key(key)));
            }
        };
        let is_name = (1..=8).contains(&self.currency.chars().count())
            && self.currency.chars().all(|c| !c.is_whitespace() && !c.is_control());
        require(is_name, "currency", "`currency` is no name of 1 to 8 characters, such as \"USD\"".into());
        for (key, value) in [
            ("hardware_price", self.hardware_price),
            ("rent_per_hour", self.rent_per_hour),
            ("power_price_per_kwh", Some(self.power_price_per_kwh)),
            ("idle_watts", Some(self.idle_watts)),
            ("busy_watts", Some(self.busy_watts)),
            ("care_hours_per_month", Some(self.care_hours_per_month)),
            ("care_rate", Some(self.care_rate)),
            ("training_cost", Some(self.training_cost)),
        ] {
            let Some(value) = value else { continue };
            let holds = value.is_finite() && value >= 0.0;
            require(holds, key, format!("`{key}` is {value}, allowed is 0 or more"));
        }
        for (key, value, most) in [
            ("months", Some(self.months), 1200.0),
            ("utilisation", self.utilisation, 1.0),
            ("items_per_month", self.items_per_month, 1e15),
        ] {
            let Some(value) = value else { continue };
            let holds = value > 0.0 && value <= most;
            require(holds, key, format!("`{key}` is {value}, allowed is above 0, up to {most}"));
        }
        problems.extend(self.check_together());
        problems
    }

    /// Keys that say nothing, or nothing sensible, beside others.
    fn check_together(&self) -> Problems {
        let mut problems = Problems::new();
        let mut wrong = |key: &str, message: String| {
            problems.push(Problem::error("contradiction", message).at(Location::default().with_key(key)));
        };
        if self.rent_per_hour.is_some() {
            if self.hardware_price.is_some() {
                let message =
                    "`rent_per_hour` and `hardware_price` are both set: a machine is rented or bought";
                wrong("rent_per_hour", message.into());
            }
            for (key, value) in [
                ("power_price_per_kwh", self.power_price_per_kwh),
                ("idle_watts", self.idle_watts),
                ("busy_watts", self.busy_watts),
            ] {
                if value != 0.0 {
                    wrong(key, format!("`{key}` is set, but power is in the rent (`rent_per_hour`)"));
                }
            }
        }
        if self.busy_watts < self.idle_watts {
            wrong("busy_watts", "`busy_watts` is less than `idle_watts`".into());
        }
        for (key, value, other, other_value) in [
            ("care_hours_per_month", self.care_hours_per_month, "care_rate", self.care_rate),
            ("care_rate", self.care_rate, "care_hours_per_month", self.care_hours_per_month),
            ("busy_watts", self.busy_watts, "power_price_per_kwh", self.power_price_per_kwh),
            ("power_price_per_kwh", self.power_price_per_kwh, "busy_watts", self.busy_watts),
        ] {
            if value > 0.0 && other_value == 0.0 && self.rent_per_hour.is_none() | key.starts_with("care") {
                wrong(key, format!("`{key}` is set without `{other}`, and would count for nothing"));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<String> {
        let section: CostSection = toml::from_str(text).unwrap();
        section.check().iter().map(|p| p.location.clone().unwrap().key.unwrap()).collect()
    }

    #[test]
    fn the_default_has_no_fault_and_says_nothing_of_local_cost() {
        assert_eq!(toml::from_str::<CostSection>("").unwrap(), CostSection::default());
        assert!(CostSection::default().check().is_empty());
        assert!(toml::from_str::<CostSection>("price = 1.0").is_err());
    }

    #[test]
    fn all_faults_are_found_at_once() {
        let text = "currency = ''\nhardware_price = -1.0\nidle_watts = nan\ntraining_cost = inf\nmonths = 0.0\nutilisation = 1.1
                    items_per_month = 0.0";
        let found = [
            "currency",
            "hardware_price",
            "idle_watts",
            "training_cost",
            "months",
            "utilisation",
            "items_per_month",
        ];
        assert_eq!(keys(text), found);
    }

    #[test]
    fn keys_that_would_count_for_nothing_are_refused() {
        assert_eq!(keys("rent_per_hour = 1.0\nhardware_price = 5.0"), ["rent_per_hour"]);
        assert_eq!(keys("rent_per_hour = 1.0\nbusy_watts = 5.0"), ["busy_watts"]);
        assert_eq!(keys("care_hours_per_month = 4.0"), ["care_hours_per_month"]);
        assert_eq!(keys("rent_per_hour = 1.0\ncare_rate = 4.0"), ["care_rate"]);
        assert_eq!(keys("busy_watts = 4.0"), ["busy_watts"]);
        assert_eq!(keys("power_price_per_kwh = 0.2"), ["power_price_per_kwh"]);
        assert_eq!(keys("power_price_per_kwh = 0.2\nbusy_watts = 4.0\nidle_watts = 5.0"), ["busy_watts"]);
        let whole = "hardware_price = 2500.0\nmonths = 36.0\npower_price_per_kwh = 0.25\nidle_watts = 60.0\nbusy_watts = 350.0
                     utilisation = 0.05\ncare_hours_per_month = 4.0\ncare_rate = 60.0\nitems_per_month = 1e6";
        assert!(keys(whole).is_empty());
    }

    #[test]
    fn every_key_is_described_in_the_schema() {
        let schema = serde_json::to_value(schemars::schema_for!(CostSection)).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        assert_eq!(properties.len(), 13);
        assert!(properties.values().all(|p| p["description"].is_string()), "{schema:#}");
    }
}
