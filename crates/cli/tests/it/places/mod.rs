//! A vault in other places than a directory of one's own: served, copied, and healed from there.

mod copies;
mod healing;
mod in_buckets;
mod served;
