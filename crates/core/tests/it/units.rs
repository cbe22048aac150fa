//! Units: what is printed is read back as the same value.

use lifeboat_core::units::{Price, Rate, Size, Span};
use proptest::prelude::*;

proptest! {
    #[test]
    fn durations_read_back(milliseconds in 0..u64::from(u32::MAX) * 1_000_000) {
        let span = Span(std::time::Duration::from_millis(milliseconds));
        prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
    }

    #[test]
    fn sizes_read_back(bytes: u64) {
        prop_assert_eq!(Size(bytes).to_string().parse::<Size>().unwrap(), Size(bytes));
    }

    #[test]
    fn rates_read_back(bytes_per_second: u64) {
        let rate = Rate { bytes_per_second };
        prop_assert_eq!(rate.to_string().parse::<Rate>().unwrap(), rate);
    }

    #[test]
    fn prices_read_back(cents in 0..10_000_000_000_u64, per in "(/(h|GB|month)){0,2}") {
        let text = format!("{} EUR{per}", cents as f64 / 100.0);
        let price: Price = text.parse().unwrap();
        prop_assert_eq!(price.to_string().parse::<Price>().unwrap(), price);
    }

    #[test]
    fn no_text_makes_a_unit_panic(text in "\\PC{0,20}") {
        let _ = (text.parse::<Span>(), text.parse::<Size>(), text.parse::<Rate>(), text.parse::<Price>());
    }
}

#[test]
fn sizes_are_exact_or_refused() {
    assert_eq!("1.5 GB".parse(), Ok(Size(1_500_000_000)));
    assert_eq!("2 GiB".parse(), Ok(Size(2 << 30)));
    assert!("0.5 B".parse::<Size>().is_err());
    assert!("99999999999 TB".parse::<Size>().is_err());
    assert_eq!(Size(1_240_000_000).rounded(), "1.24 GB");
    assert_eq!(Size(12).rounded(), "12 B");
}

#[test]
fn bits_and_bytes_are_told_apart() {
    assert_eq!("1 Gbit/s".parse(), Ok(Rate { bytes_per_second: 125_000_000 }));
    assert_eq!("100 MB/s".parse(), Ok(Rate { bytes_per_second: 100_000_000 }));
}
