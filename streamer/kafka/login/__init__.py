"""Tokens instead of passwords (OAUTHBEARER): where they come from, for clients that do not fetch them by themselves."""
