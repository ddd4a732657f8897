"""Generated from proto/remora/v1 by `make proto`. Do not edit."""
