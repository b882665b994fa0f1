//! What an answer costs, what a right one costs, and from how many items a month a machine of one's own is cheaper.
//!
//! A machine of one's own, per month: price / months + price of a kWh * 0.73 * (idle watts * (1 - u) + busy watts * u) + hours of care *
//! their rate + training / months, where u is the share of the time that it works; a rented one costs 730 times its rent per hour instead of the
//! first two. An API costs its tokens. Prices come from the user: none are shipped, they change by the week.
//!
//! Candidates are compared by their bill among those that are not worse than the best. That the API is cheaper is a result like any
//! other; there are other reasons for a model of one's own than money.

mod compute;
mod energy;
mod facts;
mod measured;
mod prices;
mod report;
mod section;
mod words;

pub use compute::{LocalCost, break_even};
pub use energy::{EnergyMeter, POWERCAP};
pub use facts::{CandidateFacts, Serving, Tokens};
pub use measured::facts_of;
pub use prices::{MAX_PRICE_AGE_DAYS, Price, PriceFile};
pub use report::{CandidateCost, CostReport};
pub use section::CostSection;
