//! A frame is unpacked from its beginning, as far as somebody needs it: what was unpacked is verified and written while the processor
//! still has it at hand (a whole frame is larger than its caches), and of a frame only the beginning is unpacked for a chunk there.
//!
//! Invariant: `plain` never grows beyond what the frame's record says, whatever the frame says of itself.

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use crate::error::{Result, VaultError};

/// What the first step is given: zstd says what it wants next.
const FIRST_BYTES: usize = 64;

/// Why a frame could not be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misfit {
    Broken,
    OtherLength,
}

impl Misfit {
    pub(crate) fn why(self) -> &'static str {
        match self {
            Misfit::Broken => "does not unpack",
            Misfit::OtherLength => "has another length than its record says",
        }
    }
}

/// One frame that was opened, and what of it is unpacked; the room for it is kept from one frame to the next.
#[derive(Default)]
pub(crate) struct Unpacker {
    context: Option<DCtx<'static>>,
    opened: Vec<u8>,
    /// How much of `opened` was unpacked.
    read: usize,
    /// How much zstd wants next; 0 when the frame is whole.
    wanted: usize,
    plain: Vec<u8>,
    /// What the frame's record says that it holds.
    plain_bytes: usize,
}

impl Unpacker {
    /// Room for what is read next; what was unpacked so far is gone.
    pub(crate) fn room(&mut self) -> &mut Vec<u8> {
        self.forget();
        &mut self.opened
    }

    fn forget(&mut self) {
        self.plain.clear();
        (self.read, self.wanted, self.plain_bytes) = (0, 0, 0);
    }

    /// Begins with what `room` was filled with, once it was opened.
    pub(crate) fn begin(&mut self, compressed: bool, plain_bytes: usize) -> Result<()> {
        self.forget();
        self.plain_bytes = plain_bytes;
        if !compressed {
            std::mem::swap(&mut self.plain, &mut self.opened);
            return Ok(());
        }
        let failed = |_| VaultError::crypto("unpacking");
        let context = match &mut self.context {
            Some(kept) => {
                kept.reset(ResetDirective::SessionOnly).map_err(failed)?;
                kept
            }
            none => {
                let mut made = DCtx::try_create().ok_or_else(|| VaultError::crypto("unpacking"))?;
                // It unpacks straight into `plain`, which neither moves nor changes until the frame ends.
                made.set_parameter(DParameter::StableOutBuffer(true)).map_err(failed)?;
                none.insert(made)
            }
        };
        context.init().map_err(failed)?;
        self.plain.reserve_exact(plain_bytes);
        self.wanted = FIRST_BYTES;
        Ok(())
    }

    /// Unpacks until so many bytes are there, or the frame ends. After an error what was unpacked before stays.
    pub(crate) fn reach(&mut self, bytes: usize) -> std::result::Result<(), Misfit> {
        while self.plain.len() < bytes && self.wanted > 0 {
            self.step()?;
        }
        if self.wanted == 0 && self.plain.len() != self.plain_bytes {
            return Err(Misfit::OtherLength);
        }
        Ok(())
    }

    fn step(&mut self) -> std::result::Result<(), Misfit> {
        let Some(context) = &mut self.context else { return Err(Misfit::Broken) };
        let rest = self.opened.get(self.read..).unwrap_or_default();
        let mut input = InBuffer::around(rest.get(..self.wanted).unwrap_or(rest));
        let before = self.plain.len();
        let mut output = OutBuffer::around_pos(&mut self.plain, before);
        self.wanted = context.decompress_stream(&mut output, &mut input).map_err(|_| Misfit::Broken)?;
        let read = input.pos();
        self.read += read;
        match () {
            () if self.plain.len() > self.plain_bytes => Err(Misfit::OtherLength),
            () if self.wanted > 0 && read == 0 && self.plain.len() == before => Err(Misfit::Broken),
            () if self.wanted == 0 && self.read != self.opened.len() => Err(Misfit::OtherLength),
            () => Ok(()),
        }
    }

    /// What is unpacked so far.
    pub(crate) fn plain(&self) -> &[u8] {
        &self.plain
    }

    pub(crate) fn into_plain(self) -> Vec<u8> {
        self.plain
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unpacking(packed: &[u8], compressed: bool, plain_bytes: usize) -> Unpacker {
        let mut unpacker = Unpacker::default();
        *unpacker.room() = packed.to_vec();
        unpacker.begin(compressed, plain_bytes).unwrap();
        unpacker
    }

    /// Some of it repeats, some does not, and it has several of zstd's blocks.
    fn some_plain() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec((any::<u8>(), 1..60_000usize, any::<bool>()), 0..8).prop_map(|parts| {
            let part = |(seed, length, repeats): (u8, usize, bool)| {
                (0..length)
                    .map(move |n| if repeats { seed } else { (n.wrapping_mul(n + usize::from(seed)) >> 3) as u8 })
            };
            parts.into_iter().flat_map(part).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn as_much_is_there_as_was_asked_for_and_all_of_it_is_right(
            plain in some_plain(), level in 1..5i32, asked in prop::collection::vec(0..500_000usize, 0..6)
        ) {
            let packed = zstd::bulk::compress(&plain, level).unwrap();
            let mut unpacker = unpacking(&packed, true, plain.len());
            for bytes in asked.into_iter().chain([usize::MAX]) {
                unpacker.reach(bytes).unwrap();
                prop_assert!(unpacker.plain().len() >= bytes.min(plain.len()));
                prop_assert!(plain.starts_with(unpacker.plain()));
            }
            prop_assert_eq!(unpacker.into_plain(), plain);
        }

        #[test]
        fn what_is_not_what_its_record_says_is_an_error(plain in some_plain(), at in any::<prop::sample::Index>(), other in 1..2_000usize) {
            let packed = zstd::bulk::compress(&plain, 3).unwrap();
            let cut = packed[..at.index(packed.len())].to_vec();
            prop_assert!(unpacking(&cut, true, plain.len()).reach(usize::MAX).is_err());
            prop_assert!(unpacking(&[packed.as_slice(), b"x"].concat(), true, plain.len()).reach(usize::MAX).is_err());
            prop_assert!(unpacking(&packed, true, plain.len() + other).reach(usize::MAX).is_err());
            prop_assert!(unpacking(&packed, true, plain.len().saturating_sub(other)).reach(usize::MAX).is_err() || plain.is_empty());
            prop_assert!(unpacking(&plain, false, plain.len() + other).reach(usize::MAX).is_err());
        }

        #[test]
        fn a_room_is_used_again_after_anything(plain in some_plain(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut packed = zstd::bulk::compress(&plain, 3).unwrap();
            let good = packed.clone();
            let at = at.index(packed.len());
            packed[at] ^= 1 << bit;
            let mut unpacker = unpacking(&packed, true, plain.len());
            if unpacker.reach(usize::MAX).is_ok() {
                prop_assert_eq!(unpacker.plain().len(), plain.len());
            }
            *unpacker.room() = good;
            unpacker.begin(true, plain.len()).unwrap();
            unpacker.reach(usize::MAX).unwrap();
            prop_assert_eq!(unpacker.plain(), &plain[..]);
        }
    }
}
