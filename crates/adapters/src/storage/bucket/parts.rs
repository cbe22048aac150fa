//! Large objects in parts: what breaks off on a bad line is a part and not the whole, and parts go side by side.
//!
//! Invariant: an upload in parts is used only where the storage has shown that it completes one on the condition that nothing
//! is there; elsewhere an object goes whole.

use futures_util::{StreamExt, TryStreamExt, stream};
use lifeboat_vault::storage::StorageError;
use object_store::aws::AmazonS3;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{PutMultipartOptions, PutPayload};

use super::failure::Failure;
use super::verbs::{PROOF, PROOF_TEXT, Shared, signed_with};
use super::wire::{self, Answer};

/// S3 takes no smaller part but the last.
const PART_BYTES: usize = 8 << 20;
/// From here on the three requests more are worth it.
const IN_PARTS_FROM: usize = 3 * PART_BYTES;
const PARALLEL_PARTS: usize = 2;

impl Shared {
    /// Who takes this in parts, if that is worth it and known to be safe.
    pub(super) async fn takes_parts(&self, payload: &PutPayload) -> Option<&AmazonS3> {
        let s3 = &*self.asks().filter(|_| payload.content_length() >= IN_PARTS_FROM)?.s3;
        let proven = self.parts_proven.get_or_init(|| self.prove_parts(s3)).await;
        proven.then_some(s3)
    }

    /// The object that proves creation is there by now: an upload to its name must not be completed.
    async fn prove_parts(&self, s3: &AmazonS3) -> bool {
        let Ok(path) = self.path(PROOF) else { return false };
        let Ok(id) = self.begin_parts(s3, PROOF, &path, "proof").await else { return false };
        let refused = match self.put_part(s3, PROOF, &path, &id, 0, PROOF_TEXT.to_vec().into()).await {
            Ok(part) => matches!(self.complete(s3, PROOF, &path, &id, vec![part]).await, Err(Failure::Exists)),
            Err(_) => false,
        };
        // Best effort: where it was completed there is nothing to give up.
        let _ = s3.abort_multipart(&path, &id).await;
        refused
    }

    pub(super) async fn create_in_parts(
        &self,
        s3: &AmazonS3,
        key: &str,
        payload: &PutPayload,
        token: &str,
    ) -> Result<Answer, Failure> {
        let path = self.path(key).map_err(Failure::Final)?;
        let id = self.begin_parts(s3, key, &path, token).await?;
        let done = self.send_parts(s3, key, &path, &id, payload).await;
        if done.is_err() {
            // Best effort: parts that stay behind take room until the bucket's own rule ends them.
            let _ = s3.abort_multipart(&path, &id).await;
        }
        done
    }

    async fn send_parts(
        &self,
        s3: &AmazonS3,
        key: &str,
        path: &Path,
        id: &String,
        payload: &PutPayload,
    ) -> Result<Answer, Failure> {
        let mut sending = Vec::new();
        for (index, piece) in cut(payload).into_iter().enumerate() {
            sending.push(self.put_part(s3, key, path, id, index, piece));
        }
        let parts: Vec<PartId> = stream::iter(sending).buffered(PARALLEL_PARTS).try_collect().await?;
        self.complete(s3, key, path, id, parts).await
    }

    async fn begin_parts(&self, s3: &AmazonS3, key: &str, path: &Path, token: &str) -> Result<String, Failure> {
        let options = || PutMultipartOptions { attributes: signed_with(token), ..PutMultipartOptions::default() };
        let doing = self.doing("write", key);
        let begun = self.persist(&doing, self.patience().stall, || s3.create_multipart_opts(path, options())).await?;
        Ok(begun.0)
    }

    async fn put_part(
        &self,
        s3: &AmazonS3,
        key: &str,
        path: &Path,
        id: &String,
        index: usize,
        piece: PutPayload,
    ) -> Result<PartId, Failure> {
        let limit = self.patience().for_upload(piece.content_length());
        let put = || s3.put_part(path, id, index, piece.clone());
        let doing = self.doing("write", key);
        match wire::with_digest(self.digest_of(&piece), self.persist(&doing, limit, put)).await {
            Ok((part, _)) => Ok(part),
            // Ended under us: only completing an upload may take that for "it is there".
            Err(Failure::Exists) => Err(Failure::Final(self.ended_under_us(key))),
            Err(failure) => Err(failure),
        }
    }

    async fn complete(
        &self,
        s3: &AmazonS3,
        key: &str,
        path: &Path,
        id: &String,
        parts: Vec<PartId>,
    ) -> Result<Answer, Failure> {
        // The storage puts the parts together before it answers.
        let limit = self.patience().stall * 4;
        let complete = || wire::create_only(s3.complete_multipart(path, id, parts.clone()));
        self.persist(&self.doing("write", key), limit, complete).await.map(|(_, answer)| answer)
    }

    fn ended_under_us(&self, key: &str) -> StorageError {
        self.doing("write", key).io(std::io::ErrorKind::Interrupted, "the storage has ended the upload of its parts")
    }
}

/// Without copying.
fn cut(payload: &PutPayload) -> Vec<PutPayload> {
    let mut pieces = Vec::new();
    for bytes in payload {
        for from in (0..bytes.len()).step_by(PART_BYTES) {
            pieces.push(bytes.slice(from..bytes.len().min(from + PART_BYTES)).into());
        }
    }
    pieces
}
