"""What the planner relies on."""

import unittest

from freetime import Span, free, merge

DAY = Span.parse("09:00-17:00")


def spans(*texts: str) -> list[Span]:
    return [Span.parse(text) for text in texts]


def texts(found: list[Span]) -> list[str]:
    return [str(span) for span in found]


class MergeTest(unittest.TestCase):
    def test_apart_stay_apart(self) -> None:
        self.assertEqual(texts(merge(spans("09:00-10:00", "11:00-12:00"))), ["09:00-10:00", "11:00-12:00"])

    def test_touching_become_one(self) -> None:
        self.assertEqual(texts(merge(spans("09:00-10:00", "10:00-11:00"))), ["09:00-11:00"])

    def test_overlapping_become_one(self) -> None:
        self.assertEqual(texts(merge(spans("09:00-10:30", "10:00-11:00"))), ["09:00-11:00"])

    def test_order_does_not_matter(self) -> None:
        self.assertEqual(texts(merge(spans("13:00-14:00", "09:00-10:00"))), ["09:00-10:00", "13:00-14:00"])

    def test_one_inside_another_is_swallowed(self) -> None:
        self.assertEqual(texts(merge(spans("09:00-12:00", "10:00-10:30"))), ["09:00-12:00"])


class FreeTest(unittest.TestCase):
    def test_an_empty_day_is_free(self) -> None:
        self.assertEqual(texts(free([], within=DAY)), ["09:00-17:00"])

    def test_gaps_around_meetings(self) -> None:
        self.assertEqual(texts(free(spans("09:30-11:00", "13:00-14:00"), within=DAY)),
                         ["09:00-09:30", "11:00-13:00", "14:00-17:00"])

    def test_a_call_during_a_workshop_frees_nothing(self) -> None:
        self.assertEqual(texts(free(spans("10:00-15:00", "11:00-11:30"), within=DAY)),
                         ["09:00-10:00", "15:00-17:00"])


if __name__ == "__main__":
    unittest.main()
