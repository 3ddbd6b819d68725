//! Tells a call's body that was reset from one that has ended.
//!
//! For tonic a reset with `CANCEL` is the end of a request's stream like any other. Where the end means
//! that a file is whole, that is the wrong answer: a daemon that gives up an archive resets its stream.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;

use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;

/// An extension of each request: whether its body broke off.
#[derive(Clone, Debug, Default)]
pub(super) struct Broken(Arc<AtomicBool>);

impl Broken {
    pub(super) fn is_broken(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A body that notes when it fails.
pub(super) struct Watched<B> {
    body: B,
    broken: Broken,
}

/// Watches the body of a request.
pub(super) fn watch<B>(mut request: http::Request<B>) -> http::Request<Watched<B>> {
    let broken = Broken::default();
    request.extensions_mut().insert(broken.clone());
    request.map(|body| Watched { body, broken })
}

impl<B: Body + Unpin> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Err(_))) = &frame {
            self.broken.0.store(true, Ordering::Release);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
