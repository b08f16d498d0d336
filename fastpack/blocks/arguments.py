"""What an argument of a kernel is: a number, or an address, turned into a pointer once, at the kernel's entry."""

from typing import Annotated

Size = Annotated[int, "int64"]
Int64s = Annotated[int, "int64*"]  # address of an int64 array
Bytes = Annotated[int, "uint8*"]  # address of rows, of any dtype
Pointers = Annotated[int, "uint8**"]  # address of an array of addresses
