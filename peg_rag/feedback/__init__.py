"""What readers say about answers, kept beside the index, and turned into sets that evaluate and train."""

from peg_rag.feedback.store import FeedbackStore, RatedPassage, Rating

__all__ = ["FeedbackStore", "RatedPassage", "Rating"]
