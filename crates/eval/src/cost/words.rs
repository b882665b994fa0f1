//! Amounts and the sentence that says what they come to.

use super::report::{Contender, Contest};

/// A count with commas: 1,234,567.
pub(super) fn count(number: f64) -> String {
    let digits = format!("{:.0}", number.max(0.0));
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// An amount to the cent; below one to three digits that say something.
pub(super) fn money(amount: f64, currency: &str) -> String {
    if amount >= 1000.0 {
        return format!("{} {currency}", count(amount));
    }
    let decimals = match amount {
        amount if amount >= 1.0 || amount <= 0.0 => 2,
        amount => (2 - amount.log10().floor() as i64).clamp(2, 12) as usize,
    };
    format!("{amount:.decimals$} {currency}")
}

/// What the contest comes to, in one sentence.
pub(super) fn sentence(contest: &Contest<'_>) -> String {
    match (&contest.local, &contest.api) {
        (None, None) => no_price(contest),
        (None, Some(api)) => {
            format!("The API wins: {}, and {}.", the_cheapest(contest, api), no_local(contest))
        }
        (Some(local), None) => only_local(contest, local),
        (Some(local), Some(api)) => match contest.items_per_month {
            Some(items) => at_volume(contest, local, api, items),
            None => at_any_volume(contest, local, api),
        },
    }
}

fn no_price(contest: &Contest<'_>) -> String {
    if contest.has_local {
        return "No candidate that is as good has a price, so nothing can be said of cost: set `hardware_price` or `rent_per_hour` in \
                `[cost]` for the local ones."
            .into();
    }
    "No candidate that is as good has a price, so nothing can be said of cost: the price file has none of their models.".into()
}

fn the_cheapest(contest: &Contest<'_>, api: &Contender<'_>) -> String {
    let price = money(1000.0 * api.cost.per_item, contest.currency);
    format!("`{}` is the cheapest that is as good as the best, at {price} for 1000 items", api.name)
}

fn no_local(contest: &Contest<'_>) -> &'static str {
    match contest.has_local {
        true => {
            "the local candidate that is as good has no price (`hardware_price` or `rent_per_hour` in `[cost]`)"
        }
        false => "no local candidate is as good",
    }
}

fn only_local(contest: &Contest<'_>, local: &Contender<'_>) -> String {
    let why = match contest.has_remote {
        true => "the remote candidate that is as good has no price",
        false => "no remote candidate is as good",
    };
    let name = local.name;
    match contest.items_per_month {
        Some(items) if local.cost.can_do(items) == Some(false) => format!(
            "`{name}` is the only candidate with a price that is as good, but its machine does at most {} items a month, {} are asked: {why}.",
            count(local.cost.capacity_per_month.unwrap_or_default()),
            count(items)
        ),
        Some(items) => format!(
            "Local wins: `{name}` costs {} a month for {} items, and {why}.",
            money(local.cost.per_month(items), contest.currency),
            count(items)
        ),
        None => format!(
            "Local wins: `{name}` costs {} a month and {} for each 1000 items, and {why}.",
            money(local.cost.fixed_per_month, contest.currency),
            money(1000.0 * local.cost.per_item, contest.currency)
        ),
    }
}

fn at_volume(contest: &Contest<'_>, local: &Contender<'_>, api: &Contender<'_>, items: f64) -> String {
    let bill = |of: &Contender<'_>| money(of.cost.per_month(items), contest.currency);
    let bills = format!(
        "at {} items a month `{}` costs {} and `{}` {}",
        count(items),
        local.name,
        bill(local),
        api.name,
        bill(api)
    );
    let capacity = local.cost.capacity_per_month.unwrap_or(f64::INFINITY);
    if capacity < items {
        let most = count(capacity.floor());
        return format!(
            "The API wins: {} items a month are asked, the machine of `{}` does at most {most}; {}.",
            count(items),
            local.name,
            the_cheapest(contest, api)
        );
    }
    match (local.cost.per_month(items) <= api.cost.per_month(items), contest.break_even) {
        (true, Some(least)) => format!("Local wins from {} items a month: {bills}.", count(least as f64)),
        (true, None) => format!("Local wins: {bills}."),
        (false, Some(least)) => {
            format!("The API wins: {bills}; local wins from {} items a month.", count(least as f64))
        }
        (false, None) => format!("The API wins: {bills}; {}.", never(local, api)),
    }
}

fn at_any_volume(contest: &Contest<'_>, local: &Contender<'_>, api: &Contender<'_>) -> String {
    match contest.break_even {
        Some(least) => format!(
            "Local wins from {} items a month: below that `{}` is cheaper than `{}`.",
            count(least as f64),
            api.name,
            local.name
        ),
        None => format!("The API wins: {}; {}.", the_cheapest(contest, api), never(local, api)),
    }
}

fn never(local: &Contender<'_>, api: &Contender<'_>) -> String {
    if api.cost.per_item <= local.cost.per_item {
        return format!("`{}` wins at no volume, its power alone costs as much", local.name);
    }
    let needed = local.cost.fixed_per_month / (api.cost.per_item - local.cost.per_item);
    let most = local
        .cost
        .capacity_per_month
        .map_or_else(String::new, |most| format!(", and the machine does at most {}", count(most.floor())));
    format!("`{}` would have to do {} items a month{most}", local.name, count(needed.ceil()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_readable() {
        for (amount, expected) in [
            (0.0, "0.00 USD"),
            (0.000_041_26, "0.0000413 USD"),
            (0.1, "0.100 USD"),
            (0.25, "0.250 USD"),
            (1.0, "1.00 USD"),
            (12.345, "12.35 USD"),
            (999.5, "999.50 USD"),
            (1_234_567.8, "1,234,568 USD"),
        ] {
            assert_eq!(money(amount, "USD"), expected);
        }
        for (number, expected) in
            [(0.0, "0"), (999.0, "999"), (1000.0, "1,000"), (123_456.0, "123,456"), (-3.0, "0")]
        {
            assert_eq!(count(number), expected);
        }
    }
}
