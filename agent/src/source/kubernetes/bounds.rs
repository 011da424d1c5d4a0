//! Bounds against misbehaving servers: a list that never ends, or that ends too
//! slowly.

use std::time::Duration;

use vmap_proxy_compiler::model::objects::ObjectRef;

/// A list must come at this rate, in bytes a second, once its patience is over.
/// Slower or longer lists come in pages, which are small.
const RATE: f64 = 1024.0 * 1024.0;

/// No cluster has more pages: they make ten million objects.
const MOST_PAGES: usize = 20_000;

/// Pages without any object in a row.
const MOST_EMPTY_PAGES: usize = 3;

/// Longest wait for a list: `patience`, and more for each received byte. Only
/// waiting counts, not processing.
#[derive(Debug)]
pub(super) struct Budget {
    patience: Duration,
    received: usize,
    waited: Duration,
}

impl Budget {
    /// Nothing received yet.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, received: 0, waited: Duration::ZERO }
    }

    /// Returns the longest wait for the next bytes.
    pub(super) fn left(&self) -> Duration {
        let earned = Duration::from_secs_f64(self.received as f64 / RATE);
        (self.patience + earned).saturating_sub(self.waited)
    }

    /// Bytes have come after waiting for them.
    pub(super) fn take(&mut self, bytes: usize, waited: Duration) {
        self.received += bytes;
        self.waited += waited;
    }

    /// For the line about a list that is given up.
    pub(super) fn describe(&self) -> String {
        format!("{} bytes in {} s, and it is not complete", self.received, self.waited.as_secs())
    }
}

/// Checks that the pages of a list come to an end.
#[derive(Debug, Default)]
pub(super) struct Pages {
    count: usize,
    empty: usize,
    token: String,
    first: Option<ObjectRef>,
}

impl Pages {
    /// A page has come that is not the last; `first` is its first object.
    /// Returns why the list leads nowhere, if it does.
    pub(super) fn next(&mut self, token: &str, first: Option<ObjectRef>) -> Option<&'static str> {
        self.count += 1;
        self.empty = if first.is_some() { 0 } else { self.empty + 1 };
        let repeats = first.is_some() && first == self.first;
        let repeats = repeats || (self.count > 1 && token == self.token);
        token.clone_into(&mut self.token);
        self.first = first;
        match () {
            () if repeats => Some("the same page comes again and again"),
            () if self.empty > MOST_EMPTY_PAGES => Some("it has pages without any object"),
            () if self.count > MOST_PAGES => Some("it has more pages than any cluster"),
            () => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use vmap_proxy_compiler::model::objects::Kind;

    use super::*;

    #[test]
    fn a_list_earns_time_by_coming() {
        let mut budget = Budget::new(Duration::from_secs(60));
        budget.take(10, Duration::from_secs(59));
        assert!(budget.left() > Duration::ZERO && budget.left() < Duration::from_secs(2));
        budget.take(10, Duration::from_secs(2));
        assert_eq!(budget.left(), Duration::ZERO);
        budget.take(100 * 1024 * 1024, Duration::from_secs(10));
        assert!(budget.left() > Duration::from_secs(80));
    }

    #[test]
    fn pages_must_lead_on() {
        let object = |name: usize| {
            Some(ObjectRef { kind: Kind::Service, namespace: "n".to_owned(), name: format!("{name:08}") })
        };
        let mut pages = Pages::default();
        for number in 0..MOST_PAGES {
            assert_eq!(pages.next(&number.to_string(), object(number)), None);
        }
        assert!(pages.next("next", object(MOST_PAGES)).is_some());
        let mut pages = Pages::default();
        assert_eq!(pages.next("a", object(1)), None);
        assert!(pages.next("a", object(2)).is_some(), "the same token");
        let mut pages = Pages::default();
        assert_eq!(pages.next("a", object(1)), None);
        assert!(pages.next("b", object(1)).is_some(), "the same objects");
        let mut pages = Pages::default();
        assert_eq!((0..3).find_map(|number| pages.next(&number.to_string(), None)), None);
        assert!(pages.next("3", None).is_some(), "nothing for ever");
    }
}
