//! Looking into recovery points, and taking them out: `find`, `diff`, `cat`, `mount`, `export`, `import`.

mod archive;
mod finding;
pub(crate) mod mount;
