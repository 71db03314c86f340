"""Guessing ahead: who guesses tokens (`Drafter`), how many are worth it, what came of it."""
