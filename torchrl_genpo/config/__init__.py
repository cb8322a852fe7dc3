# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The options of the commands: one schema with every type, bound and default, and files that choose values."""
