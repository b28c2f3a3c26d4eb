//! The small durable state: journal, history, health, debts, pauses, revisions. Written next.
